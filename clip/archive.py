"""Reads tensors out of checkpoint files of any kind without executing code from them.

Known kinds: safetensors, ``torch.save`` files and TorchScript archives (OpenAI's ``*.pt`` files). A pickle is a
program; here it may only rebuild tensors and plain containers, and everything else it names is refused.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

ZIP_MAGIC = b"PK\x03\x04"
MAX_MODULE_DEPTH = 64
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    zlib.error,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
)
"""Exceptions raised by a truncated or altered file."""


class CheckpointError(ValueError):
    """A checkpoint file cannot be used: damaged, hostile, of another kind or of another architecture."""


class ForbiddenGlobal(pickle.UnpicklingError):
    """A pickle names something that is neither a tensor nor a plain container."""


class RawFile(NamedTuple):
    """Contents of a checkpoint file as found.

    Attributes:
        kind: "safetensors", "pickle" or "torchscript".
        content: name -> tensor; a pickle may hold other plain values.
        metadata: the text entries of a safetensors header.
    """

    kind: str
    content: dict[str, Any]
    metadata: dict[str, str]


def read_file(path: Path) -> RawFile:
    """Reads a checkpoint file; its content, not its suffix, says of which kind it is.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, of an unknown kind, or its pickle names forbidden things.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    return RawFile("torchscript", dict(_read_torchscript(archive)), {})
            return RawFile("pickle", _read_pickle(path), {})
        if start[8:9] == b"{":
            return _read_safetensors(path)
        if start.startswith(b"\x80"):
            return RawFile("pickle", _read_pickle(path), {})
    except ForbiddenGlobal as error:
        raise CheckpointError(
            f"{path} is refused: its pickle names {error}, which a checkpoint of tensors does not need and which could "
            "execute code; save the weights as a plain state dict or as safetensors"
        ) from error
    except SafetensorError as error:
        _damaged(path, error)
    except DAMAGED as error:
        _damaged(path, error)
    raise CheckpointError(
        f"{path} is not a checkpoint: it starts with {start!r}; expected a safetensors file, a torch.save file or a "
        "TorchScript archive"
    )


def _damaged(path: Path, error: Exception) -> NoReturn:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    raise CheckpointError(f"{path} is truncated or damaged and cannot be read ({reason}); fetch it again") from error


def _read_safetensors(path: Path) -> RawFile:
    with safe_open(path, framework="pt") as file:
        return RawFile("safetensors", {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"class (?:named )?['\"]?([\w.]+)", str(error))
        if named is None:
            raise
        raise ForbiddenGlobal(named.group(1)) from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    return content


class _Module:
    """Stands for an object of a TorchScript class: keeps its attributes, has no behaviour."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state) if isinstance(state, dict) else {}


def _keep_first(value: Any, *_: Any) -> Any:
    """Stands for TorchScript's typed containers: the value itself."""
    return value


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors, plain containers and :class:`_Module` stand-ins; refuses everything else by name."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(file)
        self.archive = archive
        self.prefix = prefix
        self.storages: dict[str, Tensor] = {}
        self.classes: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            qualified = f"{module}.{name}"
            return self.classes.setdefault(qualified, type(name, (_Module,), {"qualified": qualified}))
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and (name == "restore_type_tag" or name.startswith("build_")):
            return _keep_first
        raise ForbiddenGlobal(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        tag, dtype, key, _, count = pid
        if tag != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown kind of stored data: {tag!r}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.prefix}data/{key}"))
            if len(data) != count * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"data {key} has {len(data)} bytes; expected {count} times {dtype.itemsize}"
                )
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def _read_torchscript(archive: zipfile.ZipFile) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a TorchScript archive by their dotted names."""
    names = archive.namelist()
    pickled = next(name for name in names if name.endswith("/data.pkl"))
    prefix = pickled[: -len("data.pkl")]
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    with archive.open(pickled) as file:
        root = _TensorUnpickler(file, archive, prefix).load()  # type: ignore[arg-type]
    if not isinstance(root, _Module):
        raise ValueError(f"its data is a {type(root).__name__}, not a module")
    return _walk(root, _declared_tensors(archive, prefix), "", 0)


def _declared_tensors(archive: zipfile.ZipFile, prefix: str) -> dict[str, set[str]]:
    """Qualified class name -> names its source declares as parameters and buffers. The source is read, never run."""
    declared = {}
    for name in archive.namelist():
        if not (name.startswith(f"{prefix}code/") and name.endswith(".py")):
            continue
        module = name[len(f"{prefix}code/") : -len(".py")].replace("/", ".")
        for part in re.split(r"^class ", archive.read(name).decode("utf-8"), flags=re.MULTILINE)[1:]:
            lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*?)\]", part, flags=re.MULTILINE)
            if len(lists) == 2:
                class_name = re.split(r"\W", part)[0]
                declared[f"{module}.{class_name}"] = set(re.findall(r'"([^"]+)"', " ".join(lists)))
    return declared


def _walk(module: _Module, declared: dict[str, set[str]], prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > MAX_MODULE_DEPTH:
        raise ValueError(f"its modules are nested deeper than {MAX_MODULE_DEPTH}")
    known = declared.get(getattr(module, "qualified", ""))
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _walk(value, declared, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, Tensor) and (known is None or name in known):
            yield f"{prefix}{name}", value

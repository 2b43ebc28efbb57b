"""Backbones by name: an architecture of open_clip with a tag or a file, and repositories of the Hugging Face Hub."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

HUB = "hf-hub:"
CONFIGS = ("open_clip_config.json", "config.json")
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
"""Weights of a repository, the first that it has; a repository of the Hub may have several."""
BESIDE = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
"""Small files that come with the weights, if the repository has them."""
FORMS = (
    "ARCHITECTURE/TAG of open_clip, such as ViT-B-16-SigLIP/webli",
    "ARCHITECTURE/FILE, a checkpoint file of an architecture of open_clip",
    "hf-hub:OWNER/NAME, a repository of the Hugging Face Hub (open_clip, CLIP, SigLIP or SigLIP 2)",
    "a checkpoint file, or a folder with weights and their configuration",
)
"""Backbones that are not in a list."""


class Named(NamedTuple):
    """Weights that a name stands for, and their configuration where no file beside them has it.

    Attributes:
        path: of the file or folder.
        config: as in open_clip_config.json, or None.
        name: as it was given.
    """

    path: Path
    config: dict[str, Any] | None = None
    name: str = ""


def needed(package: str, name: str) -> Any:
    """The module of an extra package.

    Raises:
        ImportError: it is not installed; the message names it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        pip = {"open_clip": "open_clip_torch"}.get(package, package)
        raise ImportError(
            f"the backbone {name!r} needs the package {pip} ({error}): pip install {pip}, or the extra "
            "align-prompt[towers]"
        ) from error


def split_name(name: str) -> tuple[str, str] | None:
    """Architecture of open_clip and tag or file of ``ARCHITECTURE/TAG``; None for a name of another form."""
    architecture, slash, rest = name.partition("/")
    plain = architecture and rest and not architecture.startswith((".", "~")) and ":" not in architecture
    return (architecture, rest) if slash and plain else None


def is_architecture(name: str) -> bool:
    """True if open_clip is installed and has an architecture of this name; open_clip is not imported."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        return False
    return Path(spec.origin).with_name("model_configs").joinpath(f"{name}.json").is_file()


def is_name(name: str) -> bool:
    """True for a name of the Hub or of open_clip that is no path."""
    parts = split_name(name)
    own = parts is not None and "/" not in parts[1] and is_architecture(parts[0])
    return name.startswith(HUB) or (own and not Path(name).exists())


def open_clip_config(name: str) -> dict[str, Any] | None:
    """Configuration of ``ARCHITECTURE/...`` as in open_clip_config.json, nothing is downloaded.

    Returns:
        None if open_clip is missing or has no such architecture; ``preprocess_cfg`` has what is known of the images.
    """
    parts = split_name(name)
    if parts is None or not is_architecture(parts[0]):
        return None
    open_clip = needed("open_clip", name)
    config = open_clip.get_model_config(parts[0])
    tag = open_clip.get_pretrained_cfg(*parts)
    if tag.get("quick_gelu") and not config.get("quick_gelu"):
        config["quick_gelu"] = True
        logger.info("%s: QuickGELU, which the weights were trained with", name)
    known = [tag] if tag else [open_clip.get_pretrained_cfg(parts[0], one) for one in _tags(parts[0])]
    pixels = {
        key: known[0][key]
        for key in ("mean", "std", "interpolation", "resize_mode")
        if known and all(one.get(key) and one.get(key) == known[0].get(key) for one in known)
    }  # of a file what all published weights of the architecture share
    return {"model_cfg": config, "preprocess_cfg": pixels}


def _tags(architecture: str) -> list[str]:
    return needed("open_clip", architecture).list_pretrained_tags_by_model(architecture)


def of_open_clip(name: str) -> Named | None:
    """Weights of ``ARCHITECTURE/TAG``, fetched by open_clip, or of ``ARCHITECTURE/FILE``; None for other names.

    Raises:
        ValueError: neither a tag nor a file.
        ConnectionError: the weights cannot be fetched.
    """
    parts, config = split_name(name), open_clip_config(name)
    if parts is None or config is None:
        return None
    architecture, rest = parts
    open_clip = needed("open_clip", name)
    tag = open_clip.get_pretrained_cfg(architecture, rest)
    if not tag:
        path = Path(rest).expanduser()
        if not path.is_file():
            tags = ", ".join(_tags(architecture)) or "none"
            raise ValueError(f"{name!r}: {rest!r} is neither a file nor a tag of {architecture}, which has {tags}")
        return Named(path, config, name)
    source = tag.get("hf_hub") or tag.get("url") or ""
    with _fetching(name, str(source).rstrip("/")):
        return Named(Path(open_clip.download_pretrained(tag)), config, name)


def of_hub(name: str, weights: bool = True) -> Named:
    """Folder of ``hf-hub:OWNER/NAME`` in the cache of the Hub, fetched if it is not there.

    Args:
        weights: false fetches the configuration alone.

    Raises:
        ValueError: no such name, a repository that needs a permission, or one without weights.
        ConnectionError: the Hub cannot be reached.
    """
    repository = name[len(HUB) :].strip("/")
    if repository.count("/") != 1:
        raise ValueError(f"{name!r} is no name of the Hugging Face Hub, expected {HUB}OWNER/NAME")
    hub = needed("huggingface_hub", name)
    with _fetching(name, repository):
        folder = Path(hub.snapshot_download(repository, allow_patterns=[*CONFIGS, *BESIDE]))
        if weights and not any((folder / file).is_file() for file in WEIGHTS):
            present = hub.list_repo_files(repository, revision=folder.name)  # a snapshot is named by its commit
            for file in [file for file in WEIGHTS if file in present][:1]:
                hub.hf_hub_download(repository, file, revision=folder.name)
    for files in (CONFIGS, WEIGHTS) if weights else (CONFIGS,):
        if not any((folder / file).is_file() for file in files):
            raise ValueError(f"{name!r} is no CLIP of open_clip or transformers: it has none of {', '.join(files)}")
    return Named(folder, None, name)


@contextmanager
def _fetching(name: str, source: str) -> Iterator[None]:
    """Turns what a download raises into one error that says what to do."""
    try:
        yield
    except Exception as error:
        kind, text = {base.__name__ for base in type(error).__mro__}, _short(error)
        package = type(error).__module__.partition(".")[0]
        if "GatedRepoError" in kind or "gated" in text.lower():
            raise ValueError(
                f"{name!r} is gated: accept its terms on its page of the Hub, then log in with `hf auth login` or set "
                f"HF_TOKEN ({text})"
            ) from error
        if kind & {"RepositoryNotFoundError", "HFValidationError"} or "404" in text:
            raise ValueError(
                f"{name!r}: there is no {source!r} that can be read; check the spelling, and HF_TOKEN if it is private "
                f"({text})"
            ) from error
        if not isinstance(error, (OSError, RuntimeError)) and package not in ("httpx", "requests", "huggingface_hub"):
            raise
        raise ConnectionError(
            f"cannot fetch {source} for {name!r} ({text}); fetch its weights, configuration and tokenizer files on "
            "another machine, put them into one folder, and give the folder as MODEL.BACKBONE.NAME (a single open_clip "
            f"file: ARCHITECTURE/FILE); files in the cache of the Hub, {_cache()}, are found by name"
        ) from error


def _cache() -> str:
    return os.environ.get("HF_HUB_CACHE") or os.path.join(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub")


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def similar_names(name: str) -> str:
    """Part of a message: names of open_clip that a name may stand for, or that open_clip is missing; "" for a path."""
    parts = split_name(name)
    if parts is None or Path(name).suffix:
        return ""
    if importlib.util.find_spec("open_clip") is None:
        return " (open_clip_torch is not installed, so names of open_clip are not known)"
    known = list({one.partition("/")[0]: one for one in pretrained_names()}.values())
    similar = difflib.get_close_matches(name, known, 3, 0.6)
    return f" (do you mean {' or '.join(similar)}?)" if similar else ""


def pretrained_names() -> list[str]:
    """ARCHITECTURE/TAG of everything open_clip has weights for; empty if it is not installed."""
    try:
        import open_clip
    except ImportError:
        return []
    return [f"{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]

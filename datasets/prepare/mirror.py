"""A mirror of the data sets on the Hugging Face Hub: one archive each, images and official split file together.

`HF_ENDPOINT` chooses another host, as everywhere with huggingface_hub. What the mirror lacks comes from the publishers.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datasets.prepare.catalog import DatasetInfo, read_data
from datasets.prepare.sources import checksums
from datasets.prepare.unpack import entries, free_space, unpack

__all__ = ["MIRROR", "MIRRORED", "Archive", "described", "download", "host", "place", "present"]

logger = logging.getLogger(__name__)

_DATA = read_data("mirror.yaml")
MIRROR, REVISION = str(_DATA["repository"]), str(_DATA["revision"])


@dataclass(frozen=True)
class Archive:
    """File of the mirror; size in bytes and sha256 where somebody has published them."""

    file: str
    size: int | None = None
    sha256: str = ""


MIRRORED = {name: Archive(**entry) for name, entry in _DATA["archives"].items()}


def host() -> str:
    """Address of the Hub in use."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def download(archive: Archive, folder: Path) -> Path:
    """Fetch an archive; a broken download goes on where it stopped.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: it cannot be fetched.
        ValueError: it is not the known file.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("the mirror needs huggingface_hub: pip install huggingface_hub") from None
    try:
        path = Path(huggingface_hub.hf_hub_download(MIRROR, archive.file, revision=REVISION, local_dir=folder))
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as err:
        first = str(err).strip().partition("\n")[0]
        raise OSError(f"{host()}/{MIRROR} does not give {archive.file}: {first or type(err).__name__}") from err
    if archive.sha256 and (found := checksums(path, ("sha256",))["sha256"]) != archive.sha256:
        path.unlink()
        raise ValueError(f"{archive.file} of the mirror has sha256 {found}, expected {archive.sha256}")
    return path


def present(archive: Path, targets: Sequence[str]) -> list[str]:
    """Targets that an archive holds, below whatever folder."""
    found: set[str] = set()
    for entry in entries(archive):
        parts = PurePosixPath(entry.path).parts
        found.update("/".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
    return [target for target in targets if target in found]


def place(
    archive: Archive,
    targets: Sequence[str],
    folder: Path,
    work: Path,
    verify: Callable[[str, Path], None],
    quiet: bool = False,
    keep: bool = False,
) -> list[str]:
    """Fetch an archive and move what it has of the targets into `folder`; returns these targets.

    Args:
        targets: paths below `folder`, none of which exists.
        work: folder for unfinished files on the same disk.
        verify: raises ValueError for a target that is not the wanted one, which is then left out.
        keep: the archive stays below `work`.

    Raises:
        ImportError, OSError, ValueError: as `download` and `unpack`.
    """
    if archive.size is not None:
        free_space(work, archive.size, archive.file)
    path = download(archive, work / "mirror")
    placed = []
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=work) as text:
        new = Path(text)
        unpack(path, {target: target for target in present(path, targets)}, new, quiet=quiet)
        for target in (target for target in targets if (new / target).exists()):
            try:
                verify(target, new / target)
            except ValueError as err:
                logger.warning("not from the mirror: %s", err)
                continue
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / target, folder / target)
            placed.append(target)
    if not keep:
        shutil.rmtree(work / "mirror")
    return placed


def described(info: DatasetInfo) -> str:
    """Lines of --list about the mirror; "" if the data set is not there."""
    archive = MIRRORED.get(info.name)
    if archive is None:
        return ""
    size = "size not known" if archive.size is None else f"{archive.size / 1e9:.2g} GB"
    known = f"sha256 {archive.sha256}" if archive.sha256 else "no checksum known"
    return f"  first: {archive.file} (untested): {size}, {known}\n    {host()}/{MIRROR} at {REVISION[:12]}"

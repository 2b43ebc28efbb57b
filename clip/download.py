"""Published weights: names, addresses, and a download that resumes and checks itself."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger(__name__)

_PLACE = "https://openaipublic.azureedge.net/clip/models"
MODELS = {
    "RN50": f"{_PLACE}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101": f"{_PLACE}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "RN50x4": f"{_PLACE}/7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
    "RN50x16": f"{_PLACE}/52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt",
    "RN50x64": f"{_PLACE}/be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt",
    "ViT-B/32": f"{_PLACE}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": f"{_PLACE}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": f"{_PLACE}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": f"{_PLACE}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
}
"""Name -> address; the last part but one of an address is the file's sha256."""
CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60.0
"""Seconds without an answer after which an attempt fails."""


def download(url: str, root: str | Path | None = None, attempts: int = ATTEMPTS, pause: float = 1.0) -> str:
    """Fetches a file once; later calls find it. An interrupted download goes on where it stopped.

    Args:
        url: address whose last part but one is the sha256 of the file.
        root: folder for the file; ``~/.cache/clip`` when None.
        attempts: tries before giving up; each goes on where the one before stopped.
        pause: seconds before the second try, doubled before each later one.

    Returns:
        Path of the checked file.

    Raises:
        ConnectionError: the address cannot be reached; the message says where to put the file by hand.
        ValueError: what arrived has another sha256.
    """
    expected, name = url.split("/")[-2:]
    folder = Path.home() / ".cache" / "clip" if root is None else Path(root).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    if target.exists() and not target.is_file():
        raise ValueError(f"{target} exists and is not a file; the weights would go there")
    with _locked(folder / f".{name}.lock"):
        if target.is_file():
            if _sha256(target) == expected:
                return str(target)
            logger.warning("%s has another sha256 than %s and is fetched again", target, url)
        part = folder / f"{name}.part"
        for attempt in range(attempts):
            try:
                _fetch(url, part)
                break
            except (OSError, HTTPException) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if refused or attempt + 1 == attempts:
                    raise ConnectionError(
                        f"cannot fetch {url} ({error}); fetch it on another machine and put it at {target} "
                        f"(sha256 {expected})"
                    ) from error
                logger.warning("download of %s interrupted (%s); going on", name, error)
                time.sleep(pause * 2**attempt)
        found = _sha256(part)
        if found != expected:
            part.unlink()
            raise ValueError(f"{url} arrived with sha256 {found}, expected {expected}; it was deleted, try again")
        os.replace(part, target)
    return str(target)


def _fetch(url: str, part: Path) -> None:
    """Appends what is missing to ``part``; starts over where the server cannot go on."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond what is there: it is complete, the sha256 decides
            return
        raise
    with response:
        resumed = have > 0 and response.status == 206
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        start = have if resumed else 0
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=start, unit="iB", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    have = part.stat().st_size
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process at a time fetch a file; without effect where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

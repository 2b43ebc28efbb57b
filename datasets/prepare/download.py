"""Download of a file from the first of several addresses that has it; broken downloads go on where they stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from datasets.prepare.sources import CHUNK, DRIVE

__all__ = ["fetch"]

logger = logging.getLogger(__name__)

ATTEMPTS = 5
TIMEOUT = 60.0
"""Seconds without an answer after which an attempt fails."""
_NETWORK = (ConnectionError, HTTPException, urllib.error.URLError, TimeoutError, ssl.SSLError)
DRIVE_URL = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"


def fetch(
    urls: Sequence[str],
    target: Path,
    verify: Callable[[Path], None],
    size: int | None = None,
    quiet: bool = False,
    attempts: int = ATTEMPTS,
    pause: float = 1.0,
) -> str:
    """Fetch a file to `target`, which exists afterwards only if `verify` accepted the content.

    Each address has its own unfinished file beside `target`, so content of two servers is never mixed.

    Args:
        urls: addresses in the order in which they are tried; "drive:ID" is Google Drive.
        verify: raises ValueError if the file is not the wanted one.
        size: bytes of the file if known: anything longer or shorter is not the wanted one.
        attempts: tries per address; each goes on where the one before stopped.
        pause: seconds before the second try, doubled before each later one.

    Returns:
        The address that gave the file.

    Raises:
        OSError: no address gave the wanted file (the message has the error of each), or the disk cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    parts = {url: _part(target, url) for url in urls}
    for url, part in parts.items():
        try:
            _fetch_one(url, part, size, quiet, attempts, pause)
            verify(part)
        except ValueError as err:
            part.unlink(missing_ok=True)
            _tag(part).unlink(missing_ok=True)
            problems.append(f"{url}: {err}; it was deleted")
        except _NETWORK as err:
            problems.append(f"{url}: {err}")
        else:
            os.replace(part, target)
            for other in parts.values():
                _tag(other).unlink(missing_ok=True)
                other.unlink(missing_ok=True)
            return url
        logger.warning("%s", problems[-1])
    raise ConnectionError(f"{target.name} could not be fetched. " + "; ".join(problems))


def _fetch_one(url: str, part: Path, size: int | None, quiet: bool, attempts: int, pause: float) -> None:
    """Fill `part` from one address."""
    if url.startswith(DRIVE):
        if _fetch_drive(url[len(DRIVE) :], part, quiet):
            return
        url = DRIVE_URL.format(url[len(DRIVE) :])
    for attempt in range(attempts):
        try:
            _go_on(url, part, size, quiet)
            return
        except _NETWORK as err:
            refused = isinstance(err, urllib.error.HTTPError) and err.code < 500
            if refused or attempt + 1 == attempts:
                raise
            logger.warning("download of %s interrupted (%s); going on", url, err)
            time.sleep(pause * 2**attempt)


def _go_on(url: str, part: Path, size: int | None, quiet: bool) -> None:
    """Append what is missing to `part`; start over where the server cannot go on or has another file by now."""
    have = part.stat().st_size if part.is_file() else 0
    if size is not None and have == size:
        return
    headers = {"User-Agent": "Mozilla/5.0", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _tag(part).is_file():
            headers["If-Range"] = _tag(part).read_text(encoding="utf-8")
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as err:
        if err.code == 416 and have:
            known = (err.headers.get("Content-Range") or "").rpartition("/")[2]
            if known == str(have):  # complete
                return
            part.unlink()
            raise ConnectionError(
                "what was there before is longer than the file of the server; starting over"
            ) from None
        raise
    with response:
        resumed = have > 0 and response.status == 206
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + start
        if response.headers.get_content_type() == "text/html":
            raise ValueError("the server sent a web page instead of the file")
        if size is not None and total is not None and total != size:
            raise ValueError(f"the file of the server has {total} bytes, expected {size}")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if not resumed:
            _tag(part).unlink(missing_ok=True)
            if tag and not tag.startswith("W/"):
                _tag(part).write_text(tag, encoding="utf-8")
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.name[1:-14], disable=quiet) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    have = part.stat().st_size
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _fetch_drive(number: str, part: Path, quiet: bool) -> bool:
    """Fetch with gdown, which answers Google Drive's confirmation pages; True on success."""
    try:
        import gdown
        from gdown import exceptions
    except ImportError:
        return False
    refused = getattr(exceptions, "DownloadError", exceptions.FileURLRetrievalError)
    try:
        found = gdown.download(id=number, output=str(part), quiet=quiet, resume=True)
    except (OSError, refused) as err:
        logger.warning("gdown cannot fetch %s from Google Drive: %s", number, err)
        return False
    return found is not None and part.is_file()


def _part(target: Path, url: str) -> Path:
    return target.with_name(f".{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")


def _tag(part: Path) -> Path:
    """File with what the server calls this version of the content."""
    return part.with_name(f"{part.name}.tag")

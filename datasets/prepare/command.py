"""Fetch, check and unpack data sets into the folders that CoOp's users have.

    python -m datasets.prepare --list
    python -m datasets.prepare EuroSAT OxfordPets --root DATA
    python -m datasets.prepare ImageNet --root DATA --offline FOLDER_WITH_THE_ARCHIVES

What is there already is left as it is, a broken download goes on where it stopped, and nothing half unpacked is ever
put in place. Exit code 1 if something is missing afterwards.
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from dassl.utils import check_availability, read_json, write_json
from datasets.few_shot import read_split
from datasets.prepare import mirror
from datasets.prepare.catalog import CATALOG, DatasetInfo
from datasets.prepare.convert import CONVERTERS
from datasets.prepare.download import fetch
from datasets.prepare.flags import build_parser
from datasets.prepare.sources import DRIVE, HAND, SOURCES, Source, checksums
from datasets.prepare.unpack import free_space, unpack
from datasets.standard import differences, make_split

__all__ = ["Step", "find_name", "main", "prepare"]

logger = logging.getLogger(__name__)

WORK = ".prepare"
"""Folder in the data set's folder for unfinished files and the record of what came from where."""


SAME_CONTENT = "not the known bytes, but counts, class names and few-shot picks are the published ones"


class Step(NamedTuple):
    """Outcome for one file: state is done, there (nothing to do) or failed."""

    file: str
    state: str
    text: str


class Settings(NamedTuple):
    """Folder of files fetched elsewhere, whether to keep archives and to be quiet, seconds before a second try, and
    whether the mirror comes first."""

    offline: Path | None = None
    keep: bool = False
    quiet: bool = False
    pause: float = 1.0
    mirror: bool = False


def prepare(
    name: str, root: str | os.PathLike[str], made_split: bool = False, settings: Settings | None = None
) -> list[Step]:
    """Put one data set in place, as far as it is not.

    Args:
        name: of the catalogue.
        root: the data root; the data set's folder is made in it.
        made_split: fetch the annotations and make a split by the original procedure instead of fetching the published
            split file.

    Returns:
        What became of each file; errors are among them and raise nothing.

    Raises:
        ValueError: `made_split` where the published split file is there or the data set needs none.
        OSError: the folder cannot be made, or another process is preparing it.
    """
    settings = settings or Settings()
    info = CATALOG[name]
    folder = Path(os.path.abspath(os.path.expanduser(root))) / info.folder
    if made_split and not info.split_file:
        raise ValueError(f"{name} comes with its own lists, there is no split to make")
    if made_split and (folder / info.split_file).is_file():
        raise ValueError(f'the published split file "{folder / info.split_file}" is there, so no other one is made')
    wanted = _wanted(info, made_split)
    if not made_split and not any(_missing(source, folder) for source in wanted):
        return [_step(info, source, folder, settings) for source in wanted]  # nothing is written
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            for old in work.glob("unpack-*"):  # of a process that was ended
                shutil.rmtree(old)
            steps = [] if made_split else _from_mirror(info, wanted, folder, settings)
            steps += [_step(info, source, folder, settings) for source in wanted]
            if made_split:
                steps.append(_make_split(name, root, info, steps))
            if not any(path.name != "lock" for path in work.iterdir()):
                shutil.rmtree(work, ignore_errors=True)
            return steps
    except Timeout:
        raise OSError(f'another process is preparing "{folder}"') from None


def _from_mirror(info: DatasetInfo, wanted: Sequence[Source], folder: Path, settings: Settings) -> list[Step]:
    """Put in place what the mirror has of what is missing; the rest is left to the publishers, with a message."""
    archive = mirror.MIRRORED.get(info.name)
    lacking = {target: source for source in wanted for target in _missing(source, folder)}
    images = any(source.role == "images" for source in lacking.values())
    if not settings.mirror or settings.offline is not None or archive is None or not images:
        return []
    sums: dict[str, dict[str, str]] = {}

    def verify(target: str, path: Path) -> None:
        sums[target] = {} if lacking[target].take else check(info, lacking[target], path, path.parent)

    work = folder / WORK
    try:
        placed = mirror.place(archive, list(lacking), folder, work, verify, settings.quiet, settings.keep)
    except (OSError, ValueError, ImportError) as err:
        logger.warning("not from the mirror: %s", err)
        return []
    origin = f"{mirror.host()}/{mirror.MIRROR}"
    for target in placed:
        _record(work, lacking[target], f"{origin}/{archive.file}", sums[target], "of the mirror's archive")
    return [Step(archive.file, "done", f"from {origin}: {', '.join(placed) or 'nothing of use'}")]


def _wanted(info: DatasetInfo, made_split: bool) -> list[Source]:
    sources = SOURCES[info.name]
    if made_split:
        return [source for source in sources if source.file != info.split_file]
    return [source for source in sources if source.role != "annotations"]


def _step(info: DatasetInfo, source: Source, folder: Path, settings: Settings) -> Step:
    """Fetch and place one file; errors become part of the step."""
    try:
        return _place_source(info, source, folder, settings)
    except (OSError, ValueError, ImportError) as err:
        return Step(source.file, "failed", str(err))


def _missing(source: Source, folder: Path) -> list[str]:
    """Targets of a file that are not there, none if it is not needed."""
    if source.unless and _exists(folder / source.unless):
        return []
    return [target for target in source.targets if not _exists(folder / target)]


def _place_source(info: DatasetInfo, source: Source, folder: Path, settings: Settings) -> Step:
    missing = _missing(source, folder)
    if not missing:
        return Step(source.file, "there", _known_content(info, source, folder))
    work = folder / WORK
    where, origin, sums = _obtain(info, source, folder, settings)
    try:
        if source.take:
            _unpack(source, where, folder, missing, settings.quiet)
        elif where.parent == work:
            os.replace(where, folder / source.file)
        else:
            shutil.copyfile(where, work / source.file)
            os.replace(work / source.file, folder / source.file)
    except ValueError:
        if where.parent == work and not source.checks:
            where.unlink()  # nothing says that it arrived whole, so the next try fetches it again
        raise
    if where.parent == work and not settings.keep:
        where.unlink(missing_ok=True)
    if not source.checks:
        text = f"no checksum known; sha256 {sums['sha256']}"
    elif all(sums[kind] == known for kind, known in source.checks.items()):
        text = "checksum is right"
    else:
        text = f"{SAME_CONTENT}; sha256 {sums['sha256']}"
    _record(work, source, origin, sums, text)
    return Step(source.file, "done", f"from {origin}; {text}")


def _obtain(info: DatasetInfo, source: Source, folder: Path, settings: Settings) -> tuple[Path, str, dict[str, str]]:
    """The checked file, where it came from, and its checksums."""
    work = folder / WORK
    sums: dict[str, str] = {}

    def verify(path: Path) -> None:
        sums.update(check(info, source, path, folder))

    if (work / source.file).is_file():  # fetched before, but not put in place
        try:
            verify(work / source.file)
            return work / source.file, _shown(source.urls[0]) if source.urls else "an earlier run", sums
        except ValueError as err:
            logger.warning("%s was fetched before and is fetched again: %s", source.file, err)
            (work / source.file).unlink()
    for place in source.beside:
        if source.checks and (folder.parent / place).is_file():
            try:
                verify(folder.parent / place)
                return folder.parent / place, place, sums
            except ValueError as err:
                logger.info("%s is not used: %s", place, err)
    if settings.offline is not None:
        tried = [settings.offline / part / source.file for part in ("", info.name, info.folder)]
        found = next((path for path in tried if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{settings.offline} has no {source.file} ({_size(source)}); get it from {_places(info, source)}"
            )
        verify(found)
        return found, str(found), sums
    if not source.urls:
        raise FileNotFoundError(f"cannot be fetched automatically. {HAND.get(info.name, info.home)}")
    if source.size is not None:
        free_space(work, source.size, source.file)
    try:
        url = fetch(source.urls, work / source.file, verify, source.size, settings.quiet, pause=settings.pause)
    except ConnectionError as err:
        raise ConnectionError(
            f"{err}. By hand: get {source.file} ({_size(source)}) from {_places(info, source)}, put it into a "
            f"folder DIR and add --offline DIR. {HAND.get(info.name, '')}".strip()
        ) from err
    return work / source.file, _shown(url), sums


def check(info: DatasetInfo, source: Source, path: Path, folder: Path) -> dict[str, str]:
    """Checksums of a file; ValueError if it is not the one that `source` speaks of.

    A split file with other bytes than known is taken if counts, class names and few-shot picks are the published ones.
    """
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise ValueError(f"{source.file} has {size} bytes, expected {source.size}")
    sums = checksums(path, tuple({"sha256": "", **source.checks}))
    for kind, known in source.checks.items():
        if sums[kind] != known:
            if source.file == info.split_file and not split_differences(info, path, folder):
                break
            raise ValueError(f"{source.file} has {kind} {sums[kind]}, expected {known}")
    return sums


def split_differences(info: DatasetInfo, path: Path, folder: Path) -> list[str]:
    """Differences of a split file from the published one, by counts, names and picks; empty if there are none."""
    images = folder / info.images
    try:
        return differences(info, *read_split(path, images), root=str(images))
    except ValueError as err:
        return [str(err)]


def _unpack(source: Source, archive: Path, folder: Path, missing: Sequence[str], quiet: bool) -> None:
    """Unpack into a new folder beside the target, then rename: a target exists only when it is whole."""
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=folder / WORK) as text:
        new = Path(text)
        if source.convert:
            CONVERTERS[source.convert](archive, new, folder, quiet=quiet)
        else:
            take = {path: target for path, target in source.take.items() if target in missing}
            unpack(archive, take, new, source.inner, quiet)
        absent = [target for target in missing if not _exists(new / target)]
        if absent:
            raise ValueError(f"{archive.name} holds nothing for {', '.join(absent)}")
        for target in missing:
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            if (folder / target).is_dir() and not (folder / target).is_symlink():
                (folder / target).rmdir()  # it is empty, else it would not be missing
            os.replace(new / target, folder / target)


def _make_split(name: str, root: str | os.PathLike[str], info: DatasetInfo, steps: Sequence[Step]) -> Step:
    failed = [step.file for step in steps if step.state == "failed"]
    if failed:
        return Step(info.made_split, "failed", f"not made, because {', '.join(failed)} is missing")
    try:
        path = make_split(name, root)
    except (OSError, ValueError, ImportError) as err:
        return Step(info.made_split, "failed", str(err))
    return Step(path.name, "done", "made on this machine, NOT the published split: results cannot be compared")


def _known_content(info: DatasetInfo, source: Source, folder: Path) -> str:
    """Description of a target that exists already."""
    if source.unless and _exists(folder / source.unless):
        return f"not needed, {source.unless} is there"
    if source.take or not source.checks:
        return "is there already and was left as it is"
    try:
        sums = check(info, source, folder / source.file, folder)
    except (OSError, ValueError) as err:
        return (
            f"is there already and was left as it is, BUT: {err}. To get the published one move it away and run again"
        )
    if any(sums[kind] != known for kind, known in source.checks.items()):
        return f"is there already: {SAME_CONTENT}"
    return "is there already, and it is the published one"


def _exists(path: Path) -> bool:
    """True for a file, or a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _record(work: Path, source: Source, origin: str, sums: dict[str, str], text: str) -> None:
    """Remember what came from where, so that people can compare files for which no checksum is known."""
    path = work / "record.json"
    record = read_json(path) if path.is_file() else {}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record[source.file] = {"from": origin, "at": now, "check": text, **sums}
    write_json(record, path)


def _shown(url: str) -> str:
    return f"https://drive.google.com/file/d/{url[len(DRIVE) :]}/view" if url.startswith(DRIVE) else url


def _places(info: DatasetInfo, source: Source) -> str:
    return " or ".join(map(_shown, source.urls)) or info.home


def _size(source: Source) -> str:
    if source.size is None:
        return "size not known"
    return f"{source.size / 1e9:.1f} GB" if source.size >= 1e8 else f"{source.size / 1e6:.2g} MB"


def find_name(text: str) -> str:
    """Name in the catalogue for a name in any case, or the name of a file in configs/datasets.

    Raises:
        ValueError: no data set is called so; the message suggests the closest.
    """
    for name, info in CATALOG.items():
        if text.lower() in (name.lower(), info.config.lower()):
            return name
    check_availability(text, list(CATALOG))
    return text


def _list(names: Sequence[str]) -> None:
    """Print sizes, licences and what must be fetched by hand."""
    print(f"{'name':<20} {'yaml':<16} {'download':<20} {'fetched':<16} {'checksums':<12} licence")
    for name in names:
        info, sources = CATALOG[name], [source for source in SOURCES[name] if source.role != "annotations"]
        known = sum(bool(source.checks) for source in sources)
        how = "by hand" if info.manual else "in part" if name in HAND else "automatically"
        checked = f"{known} of {len(sources)}"
        print(f"{name:<20} {info.config:<16} {info.size:<20} {how:<16} {checked:<12} {info.licence}")
    print(
        "\nTo get one: python -m datasets.prepare NAME --root DATA, by either name; --list NAME shows one alone.\n"
        "checksums: of how many of its files one is known, by which they are checked. fetched in part: an address has\n"
        "been out of service, or a file has none; what to do is said below."
    )
    for name in names:
        info = CATALOG[name]
        print(f"\n{name}: {info.title}, {info.home}\n  goes to DATA/{info.folder}")
        if text := mirror.described(info):
            print(text)
        for source in SOURCES[name]:
            role = " (only for --make-split)" if source.role == "annotations" else ""
            sums = ", ".join(f"{kind} {value}" for kind, value in source.checks.items()) or "no checksum known"
            print(f"  {source.file}{role}: {_size(source)}, {sums}\n    {_places(info, source)}")
        if name in HAND:
            print(f"  By hand: {HAND[name]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        names = [find_name(name) for name in args.names if name != "all"]
    except ValueError as err:
        parser.error(str(err))
    if "all" in args.names:
        names = [name for name, info in CATALOG.items() if not info.manual]
    if args.list:
        _list(names or list(CATALOG))
        return 0
    if not names or args.root is None:
        parser.error("give names and --root DATA (such as EuroSAT --root data), or --list")
    if args.offline is not None and not args.offline.is_dir():
        parser.error(f"--offline {args.offline} is not a folder")
    settings = Settings(args.offline, args.keep, args.quiet, mirror=not args.no_mirror)
    bad = []
    for name in dict.fromkeys(names):
        print(f"{name} -> {Path(args.root) / CATALOG[name].folder}", flush=True)
        try:
            steps = prepare(name, args.root, args.make_split, settings)
        except (OSError, ValueError) as err:
            steps = [Step(name, "failed", str(err))]
        for step in steps:
            print(f"  {step.state:<7} {step.file}: {step.text}", flush=True)
        if any(step.state == "failed" for step in steps):
            bad.append(name)
    if bad:
        print(f"\nnot complete: {', '.join(bad)}. Run the same command again after doing what is said above.")
        return 1
    print(f"\nall there. To look it over: python -m datasets.doctor {' '.join(names)} --root {args.root}")
    return 0

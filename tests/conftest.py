"""Fixtures that more than one part of the suite uses."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: processes that tests start must compute with the same rounding

import pytest
import torch

from dassl.config.imports import run_only

# Files of minutes come first, so that no process is left with one at the end; with --no-loadscope-reorder of xdist.
LONG = (
    *("test_trainers", "test_fake_gpu", "test_every_fault", "test_local_sweep", "test_processes", "test_sweep"),
    *("test_gpu", "test_sanity_check", "test_wheel", "test_two_processes", "test_scripts", "test_resume"),
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _fixed_threads():
    """One thread keeps small models fast and results independent of the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _trusted_imports():
    """A command that a test calls decides about trust for its process; the next test starts without."""
    yield
    run_only(None)


@pytest.fixture(scope="session")
def pictures_root(tmp_path_factory) -> str:
    """Folder (--root) of the embedded data sets; the pictures of a style are written once for the whole suite."""
    base = tmp_path_factory.getbasetemp()
    return str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pictures")


@pytest.fixture
def few_emoji(monkeypatch):
    """EmojiGroups with 15 of its 69 classes, each with two pictures to train on, one to validate and two to test.

    EmojiCaptions has 256 drawings of one style.
    """
    from datasets.embedded import benchmark, load_style
    from datasets.embedded.emoji import EmojiGroups
    from datasets.image_text import artwork

    def some(codes):
        by_split = {part: [code for code in codes if benchmark()["split"][code] == part] for part in ("train", "test")}
        val = next(code for code in codes if benchmark()["split"][code] == "val")
        return [*by_split["train"][:2], val, *by_split["test"][:2]]

    few = {name: some(codes) for name, codes in sorted(benchmark()["groups"].items())[:15]}
    monkeypatch.setattr(EmojiGroups, "read_classes", lambda self: few)
    monkeypatch.setattr(artwork, "SEEN_STYLES", ("fxemoji",))
    monkeypatch.setattr(artwork, "load_icons", lambda: None)
    monkeypatch.setattr(artwork, "load_style", lambda *args, **options: [x[:256] for x in load_style(*args, **options)])


@pytest.fixture
def rng() -> torch.Generator:
    """Seeded generator for random test data."""
    return torch.Generator().manual_seed(0)

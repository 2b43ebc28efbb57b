"""Fixtures that more than one part of the suite uses."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: processes that tests start must compute with the same rounding

import pytest
import torch

from dassl.config.imports import run_only


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


@pytest.fixture
def rng() -> torch.Generator:
    """Seeded generator for random test data."""
    return torch.Generator().manual_seed(0)

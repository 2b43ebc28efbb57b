"""Tiny runs, those of tests/dassl/engine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "dassl" / "engine"))

from tiny_runs import tiny_arguments

import train


@pytest.fixture
def tiny(tmp_path):
    """tiny(*KEY VALUE, output=..., ...) runs train.run and returns the result."""

    def start(*opts, output="run", **options):
        return train.run(tiny_arguments(tmp_path / "images", tmp_path / output, *opts, **options))

    return start

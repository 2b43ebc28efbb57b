"""A tiny run in this process."""

import pytest
from tiny_runs import tiny_arguments

import train


@pytest.fixture
def root(tmp_path):
    return tmp_path / "images"


@pytest.fixture
def tiny(root, tmp_path):
    """tiny(*KEY VALUE, output=..., ...) runs train.run and returns the result."""

    def start(*opts, output="run", **options):
        return train.run(tiny_arguments(root, tmp_path / output, *opts, **options))

    return start

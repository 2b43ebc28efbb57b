"""The example of docs/add_a_dataset.md runs as printed."""

import random
import re
from pathlib import Path

import pytest
from PIL import Image

import train
from dassl.data.datasets import build_dataset

PAGE = Path(train.__file__).parent / "docs" / "add_a_dataset.md"


@pytest.fixture
def birds(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "birds.py").write_text(block)
    images = tmp_path / "data" / "birds" / "images"
    images.mkdir(parents=True)
    lines = []
    for label, name in enumerate(("wren", "house_sparrow", "kiwi")):
        for part, count in (("train", 5), ("val", 2), ("test", 3)):
            for i in range(count):
                Image.new("RGB", (8, 8)).save(images / f"{label}{part}{i}.png")
                lines.append(f"{part},{label}{part}{i}.png,{label},{name}")
    (images.parent / "list.csv").write_text("\n".join(lines))
    return tmp_path


def test_the_example_reads_draws_and_halves(birds):
    flags = ["--import", str(birds / "birds.py"), "--root", str(birds / "data"), "--seed", "1", "DATASET.NAME", "Birds"]
    options = ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.CACHE_DIR", str(birds / "cache")]
    random.seed(1)
    dataset = build_dataset(train.build_config(train.build_parser().parse_args([*flags, *options])))
    assert dataset.classnames == ["wren", "house_sparrow"]
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [4, 4, 6]
    assert dataset.template == "a photo of a {}, a type of bird."

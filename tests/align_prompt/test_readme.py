"""The code of the README that a newcomer sees first."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_second_code_block_trains_on_a_folder_and_predicts(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    language, code = blocks[1]
    assert language == "python"
    assert len(code.strip().splitlines()) <= 5
    draw = torch.Generator().manual_seed(0)
    for name, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "my_folder" / name).mkdir(parents=True)
        for number in range(8):
            noise = torch.randint(40, (64, 64, 3), dtype=torch.uint8, generator=draw)
            pixels = noise + torch.tensor(color, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "my_folder" / name / f"{number}.png")
    Image.new("RGB", (80, 70), (210, 40, 40)).save(tmp_path / "new.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "label='red'" in capsys.readouterr().out
    assert list(tmp_path.glob("output/fit/my_folder/shots_16/MaPLe/*/seed1/DONE"))

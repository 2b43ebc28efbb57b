"""Sums of the files of a run: every flipped bit is noticed, nothing else is."""

import random
import shutil
import sys

import pytest
import torch

from clip import CLIP, save_model
from dassl import verify
from dassl.engine.status import read_result
from dassl.utils import load_checkpoint
from dassl.utils.checksums import (
    MANIFEST,
    check_sum,
    file_sum,
    problems_below,
    read_manifest,
    recorded_write,
    remove_recorded,
)

NOTED = ["config.yaml", "env.json", "result.json", "tiny/model.pth.tar-4", MANIFEST, f"tiny/{MANIFEST}"]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def test_every_flipped_bit_is_noticed(tiny, tmp_path):
    tiny()
    folder = tmp_path / "run"
    assert verify.main([str(folder)]) == 0
    draw = random.Random(0)
    for name in NOTED:
        path = folder / name
        whole = path.read_bytes()
        for _ in range(20):
            flip(path, draw.randrange(8 * len(whole)))
            assert problems_below(folder)[1]
            path.write_bytes(whole)
    assert problems_below(folder) == (4, [])


def test_damage_is_noticed_when_a_file_is_read(tiny, tmp_path):
    tiny()
    folder = tmp_path / "run"
    for name, read in (
        ("result.json", lambda: read_result(folder)),
        ("config.yaml", tiny),
        ("tiny/model.pth.tar-4", lambda: load_checkpoint(folder / "tiny" / "model.pth.tar-4")),
        ("tiny/model.pth.tar-4", lambda: tiny(output="new", flags=("--eval-only", "--model-dir", str(folder)))),
    ):
        whole = (folder / name).read_bytes()
        flip(folder / name, 8 * (len(whole) // 2))
        with pytest.raises(ValueError, match="damaged or was changed"):
            read()
        (folder / name).write_bytes(whole)
        read()


def test_a_damaged_resume_state_is_not_used(tiny, tmp_path, monkeypatch):
    from dassl.engine.simple import SimpleTrainer

    with monkeypatch.context() as patch:
        patch.setattr(SimpleTrainer, "after_train", lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny()
    path = tmp_path / "run" / "resume.pth.tar"
    flip(path, 8 * 3000)
    with pytest.raises(ValueError, match="damaged or was changed"):
        tiny()
    remove_recorded(path)
    assert tiny()["mode"] == "train"


def test_the_sum_of_old_content_stays_until_the_new_is_in_place(tmp_path, monkeypatch):
    """A process killed before the rename leaves the old file, which is still right."""
    path = tmp_path / "file"
    recorded_write(path, lambda file: file.write(b"old"))
    old = file_sum(path)
    for content in (b"new", b"newer"):
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", _refuse_for(path))
            with pytest.raises(KeyboardInterrupt):
                recorded_write(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == b"old"
        assert old in read_manifest(tmp_path)["file"]
        check_sum(path)
    path.write_bytes(b"odd")
    with pytest.raises(ValueError, match="damaged"):
        check_sum(path)


def _refuse_for(path):
    import os

    real = os.replace

    def replace(source, target):
        if str(target) == str(path):
            raise KeyboardInterrupt
        real(source, target)

    return replace


def test_verify_reports_missing_files_and_folders_without_sums(tiny, tmp_path, capsys):
    tiny()
    (tmp_path / "run" / "env.json").unlink()
    assert verify.main([str(tmp_path / "run")]) == 1
    assert 'env.json" is missing' in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert verify.main([str(tmp_path / "empty")]) == 1


def test_a_copied_run_is_right(tiny, tmp_path):
    tiny()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert verify.main([str(tmp_path / "copy")]) == 0


def test_a_left_over_resume_state_goes_at_the_next_start(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["dassl.engine.run"], "remove_recorded", lambda path: None)
        tiny()
    left = tmp_path / "run" / "resume.pth.tar"
    assert left.is_file()
    tiny()
    assert not left.exists()
    left.touch()
    recorded_write(left, lambda file: file.write(b"state"))
    left.unlink()  # killed before the sum went too
    tiny()
    assert verify.main([str(tmp_path / "run")]) == 0


def test_equal_models_are_equal_files(tmp_path, tiny_clip):
    facts = {name: name * 3 for name in "zyxwvutsrqponm"}
    for name, entries in (("a", facts), ("b", dict(reversed(facts.items())))):
        save_model(tiny_clip, tmp_path / name, entries)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    import clip

    assert torch.equal(clip.load(str(tmp_path / "a"), device="cpu")[0].logit_scale, tiny_clip.logit_scale)


@pytest.fixture
def tiny_clip():
    torch.manual_seed(0)
    return CLIP(
        embed_dim=16, image_resolution=16, vision_layers=1, vision_width=64, vision_patch_size=8, context_length=77,
        vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=1,
    )  # fmt: skip

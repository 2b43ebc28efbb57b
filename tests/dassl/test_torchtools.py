"""Checkpoints and module helpers."""

import collections
import contextlib
import errno
import logging
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

from dassl import utils
from dassl.utils import torchtools


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def state_of(model, epoch=1, **more):
    return {"state_dict": model.state_dict(), "epoch": epoch, "optimizer": None, "scheduler": None, **more}


def test_save_writes_file_pointer_and_best(tmp_path, model):
    path = utils.save_checkpoint(state_of(model, 3), tmp_path, is_best=True)
    assert path == str(tmp_path / "model.pth.tar-3")
    assert sorted(os.listdir(tmp_path)) == [".sha256.json", "checkpoint", "model-best.pth.tar", "model.pth.tar-3"]
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-3\n"
    loaded = utils.load_checkpoint(path)
    assert loaded["epoch"] == 3
    for name, value in model.state_dict().items():
        assert torch.equal(loaded["state_dict"][name], value)


def test_module_prefix_is_removed(tmp_path, model):
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    state = {"state_dict": wrapped, "epoch": 1}
    path = utils.save_checkpoint(state, tmp_path)
    assert set(utils.load_checkpoint(path)["state_dict"]) == set(model.state_dict())
    assert set(state["state_dict"]) == set(wrapped)
    path = utils.save_checkpoint(state, tmp_path, remove_module_from_keys=False, model_name="raw")
    assert set(utils.load_checkpoint(path)["state_dict"]) == set(wrapped)


def test_best_model_does_not_move_the_pointer_back(tmp_path, model):
    utils.save_checkpoint(state_of(model, 2), tmp_path, model_name="model-best.pth.tar")
    assert (tmp_path / "checkpoint").read_text() == "model-best.pth.tar\n"
    utils.save_checkpoint(state_of(model, 5), tmp_path)
    utils.save_checkpoint(state_of(model, 4), tmp_path, model_name="model-best.pth.tar")
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-5\n"


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (nn.Linear(1, 1), r"state\['extra'\] is a Linear"),
        ([1, {"a": object()}], r"state\['extra'\]\[1\]\['a'\] is a object"),
        (np.float64(1.0), "of numpy"),
        (np.zeros(2), "ndarray"),
        (lambda: None, "function"),
        ({1, 2}, "is a set"),
        (b"x", "is a bytes"),
    ],
)
def test_live_objects_are_refused(tmp_path, model, value, where):
    with pytest.raises(ValueError, match=where):
        utils.save_checkpoint(state_of(model, extra=value), tmp_path)
    assert not os.listdir(tmp_path)


def test_what_is_accepted_comes_back(tmp_path, model):
    extra = {"a": [1, 2.5, "x", None, True, (1, 2)], "c": collections.Counter({3: 1})}
    extra.update(size=torch.Size([1, 2]), dtype=torch.float16)
    path = utils.save_checkpoint(state_of(model, extra=extra), tmp_path)
    assert utils.load_checkpoint(path)["extra"] == extra


def test_full_disk_keeps_the_last_checkpoint(tmp_path, model, monkeypatch):
    utils.save_checkpoint(state_of(model, 1), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    class Full:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *err):
            self.file.close()

        def write(self, data):
            self.file.write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    monkeypatch.setattr("dassl.utils.files.open", Full, raising=False)
    for state in (state_of(model, 1), state_of(model, 2)):
        with pytest.raises(OSError, match=r"no space left .*model\.pth\.tar-") as caught:
            utils.save_checkpoint(state, tmp_path)
        assert caught.value.errno == errno.ENOSPC
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_really_full_device(tmp_path, model, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(
        "dassl.utils.files.open", lambda *_: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"), raising=False
    )
    with pytest.raises(OSError, match="no space left"):
        utils.save_checkpoint(state_of(model, 1), tmp_path)
    assert not os.listdir(tmp_path)


def test_load_faults(tmp_path, model):
    with pytest.raises(ValueError, match="None"):
        utils.load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match=r'No file exists at ".*absent"'):
        utils.load_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        utils.load_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(ValueError, match=r"list.*holds a list, expected a dictionary"):
        utils.load_checkpoint(tmp_path / "list")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files(tmp_path, model, share, legacy):
    path = tmp_path / "model.pth.tar-1"
    torch.save(state_of(model), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"model\.pth\.tar-1.*cannot be read as a checkpoint: .+") as caught:
        utils.load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"hello world, this is not a checkpoint", b"PK\x03\x04 not a zip", b"\x80\x02X"])
def test_files_of_another_kind(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r'file" (cannot be read as a checkpoint|is refused)'):
        utils.load_checkpoint(tmp_path / "file")


def test_flipped_bytes_give_a_checkpoint_or_a_clear_error(tmp_path, model):
    rng = random.Random(0)
    path = tmp_path / "file"
    torch.save(state_of(model), path)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 8])):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            assert isinstance(utils.load_checkpoint(path), dict)


def test_resume_restores_everything(tmp_path, model, caplog):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 5])
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    state = state_of(model, 7, optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
    utils.save_checkpoint(state, tmp_path)
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    other_scheduler = torch.optim.lr_scheduler.MultiStepLR(other_optimizer, [1, 5])
    with caplog.at_level(logging.INFO):
        assert utils.resume_from_checkpoint(tmp_path, other, other_optimizer, other_scheduler) == 7
    for line in ('Loading checkpoint from "', "Loaded model weights", "Loaded optimizer", "Loaded scheduler"):
        assert line in caplog.text
    assert "Previous epoch: 7" in caplog.text
    for own, loaded in zip(model.parameters(), other.parameters()):
        assert torch.equal(own, loaded)
    assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != 0.1
    moments = [s["exp_avg"] for s in optimizer.state.values()]
    for own, loaded in zip(moments, [s["exp_avg"] for s in other_optimizer.state.values()]):
        assert torch.equal(own, loaded)


def test_resume_faults(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="nothing to resume from"):
        utils.resume_from_checkpoint(tmp_path, model)
    (tmp_path / "checkpoint").write_text("../elsewhere\n")
    with pytest.raises(ValueError, match="name of a file in the same folder"):
        utils.resume_from_checkpoint(tmp_path, model)
    (tmp_path / "checkpoint").write_text("model.pth.tar-1\n")
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-1"):
        utils.resume_from_checkpoint(tmp_path, model)
    utils.save_checkpoint(state_of(model), tmp_path)
    with pytest.raises(ValueError, match="has no optimizer"):
        utils.resume_from_checkpoint(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="does not fit"):
        utils.resume_from_checkpoint(tmp_path, nn.Linear(3, 4))


def test_load_pretrained_weights(tmp_path, model, caplog):
    state = {f"module.{name}": value + 1 for name, value in model.state_dict().items()}
    state["1.weight"] = torch.zeros(9, 9)
    del state["module.1.weight"]
    torch.save(state, tmp_path / "bare")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    utils.load_pretrained_weights(model, tmp_path / "bare")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] + (name != "1.weight"))
    assert "1.weight" in caplog.text
    torch.save({"state_dict": {"other": torch.zeros(1)}}, tmp_path / "none")
    utils.load_pretrained_weights(model, tmp_path / "none")
    assert "Cannot load" in caplog.text


def test_open_and_count(model):
    utils.open_specified_layers(model, "1")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert (model[0].training, model[1].training) == (False, True)
    utils.open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="no layer head; its layers are 0, 1"):
        utils.open_specified_layers(model, ["head"])
    assert utils.count_num_param(model) == 3 * 4 + 4 + 4 * 2 + 2
    assert utils.count_num_param(params=model[0].weight) == 12
    assert utils.count_num_param(params=[{"params": model[0].parameters()}, {"params": [model[1].bias]}]) == 18
    with pytest.raises(ValueError, match="at least one"):
        utils.count_num_param()


def test_init_network_weights():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.Linear(200, 200))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    utils.init_network_weights(network, "normal", gain=0.02)
    assert network[3].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network[3].bias.abs().max() == 0
    assert torch.all(network[1].weight == 1)
    assert torch.all(network[2].weight == 1)
    for kind in ("xavier", "kaiming", "orthogonal"):
        utils.init_network_weights(network, kind)
    with pytest.raises(ValueError, match="expected one of normal, xavier"):
        utils.init_network_weights(network, "zeros")


def test_checkpoint_folder(tmp_path, model):
    assert not torchtools.is_checkpoint_folder(tmp_path)
    utils.save_checkpoint(state_of(model), tmp_path)
    assert torchtools.is_checkpoint_folder(tmp_path)

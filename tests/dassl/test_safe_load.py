"""Checkpoints of the original Dassl, and files that try to run code."""

import builtins
import os
import pickle

import pytest
import torch
from torch import nn

from dassl.utils import load_checkpoint

FIRED = []


def fire(*args):
    FIRED.append(args)


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.fixture(autouse=True)
def _nothing_fires():
    FIRED.clear()
    yield
    assert not FIRED


@pytest.fixture
def original():
    """State that the original engine stores after an epoch of SGD with a warm-up and the cosine schedule."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = {"cons_lr": 1e-5, "successor": successor, "warmup_epoch": 1, "base_lrs": [0.1], "last_epoch": 1}
    state = {"state_dict": model.state_dict(), "epoch": 1, "optimizer": optimizer.state_dict()}
    return {**state, "scheduler": scheduler, "val_result": None}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_original_checkpoint(tmp_path, original, legacy, protocol, caplog):
    path = tmp_path / "model.pth.tar-1"
    torch.save(original, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    loaded = load_checkpoint(path)
    assert set(loaded) == set(original)
    assert loaded["scheduler"] is None
    assert loaded["epoch"] == 1
    for name, value in original["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], value)
    momentum = loaded["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, original["optimizer"]["state"][0]["momentum_buffer"])
    assert "scheduler not read" in caplog.text


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("echo",), r"(posix|nt)\.system"),
        (builtins.eval, ("1",), r"builtins\.eval"),
        (builtins.getattr, ("x", "upper"), r"builtins\.getattr"),
        (fire, (1,), r"test_safe_load\.fire"),
        (torch.load, ("x",), r"torch\.serialization\.load"),
        (torch.optim.lr_scheduler.warnings.warn, ("x",), r"warn"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_by_name(tmp_path, original, function, args, name, legacy):
    path = tmp_path / "bad"
    original["scheduler"]["successor"] = Hostile(function, *args)
    torch.save(original, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=rf"bad.* is refused: it names .*{name}"):
        load_checkpoint(path)


def test_functions_beside_optimizers_are_refused(tmp_path, original):
    class Sneaky:
        def __reduce__(self):
            return torch.optim.swa_utils.update_bn, ()

    original["scheduler"]["successor"] = Sneaky()
    torch.save(original, tmp_path / "bad")
    with pytest.raises(ValueError, match=r"torch\.optim\.swa_utils\.update_bn"):
        load_checkpoint(tmp_path / "bad")


def test_plain_pickle_of_code(tmp_path):
    (tmp_path / "bad").write_bytes(pickle.dumps(Hostile(fire, 1)))
    with pytest.raises(ValueError, match="bad"):
        load_checkpoint(tmp_path / "bad")


def test_stand_ins_do_not_stay_in_what_is_returned(tmp_path, original):
    original["extra"] = [{"deep": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)}]
    original["kind"] = torch.optim.Adam
    torch.save(original, tmp_path / "file")
    loaded = load_checkpoint(tmp_path / "file")
    assert loaded["extra"] is None
    assert loaded["kind"] is None
    assert loaded["state_dict"] is not None


def test_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(tmp_path / "program"))
    with pytest.raises(ValueError, match=r"program.*TorchScript"):
        load_checkpoint(tmp_path / "program")


def test_attributes_of_allowed_functions_cannot_be_changed(tmp_path):
    """A pickle may set attributes of any object it holds (opcode BUILD); a shared function must not be one."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    body = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__(K\x01ts\x86bs."
    )
    original = torch.serialization.pickle
    path = tmp_path / "bad"
    with open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            original.dump(header, file, protocol=2)
        file.write(body)
        original.dump([], file, protocol=2)
    with pytest.raises(ValueError, match="bad"):
        load_checkpoint(path)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before

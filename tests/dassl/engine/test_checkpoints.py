"""Loading trained models: what fits is loaded, everything else is one clear error."""

import pickle

import pytest
import torch
from tiny_runs import tiny_arguments

import train
from dassl.engine import command as command_module
from dassl.engine.checkpoints import check_classnames, last_epoch
from dassl.utils.checksums import MANIFEST


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.fixture
def trained(tiny, tmp_path):
    """A run whose checkpoints have no sums, as if others had made them: tests put theirs in their place."""
    tiny("TRAIN.CHECKPOINT_FREQ", 2, output="trained")
    (tmp_path / "trained" / "tiny" / MANIFEST).unlink()
    return tmp_path / "trained"


def evaluate(trained, root, tmp_path, *opts, epoch="4", **options):
    flags = ("--eval-only", "--model-dir", str(trained), "--load-epoch", epoch)
    return train.run(tiny_arguments(root, tmp_path / "evaluated", *opts, flags=flags, **options))


def test_another_architecture_names_what_does_not_fit(trained, root, tmp_path):
    with pytest.raises(ValueError, match=r"does not fit this model") as err:
        evaluate(trained, root, tmp_path, "TRAINER.TINY.WIDTH", 8)
    assert "0.weight: (4, 3, 3, 3) in the file, (8, 3, 3, 3) in the model" in str(err.value)
    with pytest.raises(ValueError, match=r"missing: weight, bias; unknown: 0\.weight, 0\.bias, 4\.weight and 1 more"):
        evaluate(trained, root, tmp_path, trainer="TinyXU")


def test_other_classes_are_refused_unless_the_method_moves_to_them(trained, root, tmp_path):
    with pytest.raises(ValueError, match=r"trained on other classes \(class 0 is 'red' in the file and 'rouge'"):
        evaluate(trained, root, tmp_path, dataset="TinyOthers")
    result = evaluate(trained, root, tmp_path, "TRAINER.TINY.BOUND", False, dataset="TinyOthers")
    assert result["accuracy"] == command_module.read_result(trained)["accuracy"]
    with pytest.raises(ValueError, match="1 classes in the file, 2 in this data set"):
        check_classnames("x", {"classnames": ["a"]}, ["a", "b"])


def test_truncated_file(trained, root, tmp_path):
    path = trained / "tiny" / "model.pth.tar-4"
    for length in (0, 10, len(path.read_bytes()) // 2, len(path.read_bytes()) - 10):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"model\.pth\.tar-4"):
            evaluate(trained, root, tmp_path)


def test_hostile_file_runs_nothing(trained, root, tmp_path, capsys):
    path = trained / "tiny" / "model.pth.tar-4"
    for write in (torch.save, lambda content, target: target.write_bytes(pickle.dumps(content))):
        write({"state_dict": {}, "epoch": Payload()}, path)
        with pytest.raises(ValueError, match=r"model\.pth\.tar-4"):
            evaluate(trained, root, tmp_path)
    assert "this must never be printed" not in capsys.readouterr().out


def test_file_that_is_no_checkpoint(trained, root, tmp_path):
    torch.save({"weight": torch.zeros(2)}, trained / "tiny" / "model.pth.tar-4")
    with pytest.raises(ValueError, match=r"expected entries state_dict .* found weight"):
        evaluate(trained, root, tmp_path)


def test_missing_file_lists_what_is_there(trained, root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-3.*has model\.pth\.tar-2, model\.pth\.tar-4"):
        evaluate(trained, root, tmp_path, epoch="3")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(tmp_path / "nowhere", root, tmp_path)
    (trained / "tiny").rename(trained / "other")
    with pytest.raises(FileNotFoundError, match=r"models saved in .* are: other"):
        evaluate(trained, root, tmp_path)


def test_nothing_changes_when_one_of_two_models_does_not_fit(trained, tmp_path):
    args = train.build_parser().parse_args(tiny_arguments(tmp_path / "images", tmp_path / "run"))
    trainer = command_module.build_trainer(train.build_config(args))
    trainer.register_model("second", torch.nn.Linear(1, 1))
    (trained / "second").mkdir()
    torch.save({"state_dict": {"weight": torch.zeros(1, 1)}, "epoch": 4}, trained / "second" / "model.pth.tar-4")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="missing: bias"):
        trainer.load_model(str(trained), epoch=4)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_last_epoch_is_a_number_not_a_text(trained, tmp_path):
    (trained / "tiny" / "model.pth.tar-10").touch()
    (trained / "tiny" / "model.pth.tar-9").touch()
    assert last_epoch(str(trained)) == 10
    with pytest.raises(FileNotFoundError, match="train there first"):
        last_epoch(str(tmp_path))


def test_wrapper_prefix_and_foreign_names_can_be_adapted(trained, root, tmp_path, monkeypatch):
    args = train.build_parser().parse_args(tiny_arguments(root, tmp_path / "run"))
    trainer = command_module.build_trainer(train.build_config(args))
    path = trained / "tiny" / "model.pth.tar-4"
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint["state_dict"]
    torch.save({**checkpoint, "state_dict": {f"net.{name}": value for name, value in weights.items()}}, path)
    strip = {f"net.{name}": name for name in weights}
    monkeypatch.setattr(trainer, "adapt_state_dict", lambda name, state: {strip[k]: v for k, v in state.items()})
    trainer.load_model(str(trained), epoch=4)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, "sparse"])
def test_values_of_another_kind_are_refused(trained, root, tmp_path, dtype):
    path = trained / "tiny" / "model.pth.tar-4"
    checkpoint = torch.load(path, weights_only=True)
    value = checkpoint["state_dict"]["0.bias"]
    checkpoint["state_dict"]["0.bias"] = value.to_sparse() if dtype == "sparse" else value.to(dtype)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"other type: 0\.bias"):
        evaluate(trained, root, tmp_path)


def test_half_precision_is_the_same_kind(trained, root, tmp_path):
    path = trained / "tiny" / "model.pth.tar-4"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {name: value.half() for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)
    assert evaluate(trained, root, tmp_path)["mode"] == "eval"


def test_class_names_that_are_no_names_are_damage(trained, root, tmp_path):
    path = trained / "tiny" / "model.pth.tar-4"
    torch.save({**torch.load(path, weights_only=True), "classnames": 5}, path)
    with pytest.raises(ValueError, match="classnames are 5"):
        evaluate(trained, root, tmp_path)

"""A run that was killed, at whatever moment, ends exactly like one that was not."""

import multiprocessing
import random
import time

import pytest
import torch
from killed_run import start
from tiny_runs import EPOCHS, TINY, tiny_arguments

import train
from dassl.config.imports import import_modules
from dassl.engine import TRAINER_REGISTRY
from dassl.engine import command as command_module
from dassl.engine.records import read_metrics
from dassl.engine.status import config_differences, config_hash, resume_file, run_state
from dassl.utils import read_json

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["train", "torch.utils.tensorboard"])

# Dropout, flips, momentum, a schedule with warm-up, selection on validation data, and state of the method.
OPTIONS = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 2)


def final_state(folder):
    """Everything that decides how a run would go on, and what it reported."""
    last = torch.load(folder / "tiny" / f"model.pth.tar-{EPOCHS}", weights_only=True)
    best = torch.load(folder / "tiny" / "model-best.pth.tar", weights_only=True)
    noisy = ("seconds", "data_seconds")
    records = [{k: v for k, v in record.items() if k not in noisy} for record in read_metrics(folder)]
    return last, best, records


def assert_same(folder, reference):
    found, expected = final_state(folder), final_state(reference)
    for ours, theirs in zip(found[:2], expected[:2]):
        assert ours.keys() == theirs.keys()
        for name, value in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][name], value), name
        momentum = [state["optimizer"]["state"][0]["momentum_buffer"] for state in (ours, theirs)]
        assert torch.equal(*momentum)
        for entry in ("epoch", "scheduler", "val_result", "extra"):
            assert ours[entry] == theirs[entry]
        assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    assert found[2] == expected[2]  # losses, noise drawn from numpy and torch, rates and accuracies of every step


def run_in_process(arguments, log, kill_at=None, after=None):
    process = context.Process(target=start, args=(arguments, str(log), kill_at))
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    train.run(tiny_arguments(folder / "images", folder / "run", *OPTIONS))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(tmp_path, reference):
    arguments = tiny_arguments(tmp_path / "images", tmp_path / "run", *OPTIONS, "TRAINER.TINY.SLEEP", 0.2)
    rng, kills = random.Random(0), 0
    assert run_in_process(["--help"], tmp_path / "out.txt") == 0  # the server of processes has started
    for attempt in range(30):
        # an epoch takes at least 0.6 s: the first three starts cannot get through all four
        exitcode = run_in_process(arguments, tmp_path / "out.txt", after=rng.uniform(0.2, 0.9) * 1.2**attempt)
        if exitcode == 0:
            break
        assert exitcode == -9, (tmp_path / "out.txt").read_text()[-2000:]
        assert run_state(tmp_path / "run") in ("new", "incomplete")
        kills += 1
    assert run_state(tmp_path / "run") == "done", (tmp_path / "out.txt").read_text()[-2000:]
    assert kills >= 3
    assert_same(tmp_path / "run", reference)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not resume_file(tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_while_a_file_is_written(tmp_path, reference, moment):
    """Killed in its 3rd, then its 4th, 5th, ... write, so that every kind of file is hit."""
    arguments = tiny_arguments(tmp_path / "images", tmp_path / "run", *OPTIONS)
    strikes = 0
    for number in range(3, 40):
        call = 2 * number - 1 if moment == "fsync" else number  # fsync is called for the file and then for its folder
        exitcode = run_in_process(arguments, tmp_path / "out.txt", kill_at=(moment, call))
        if exitcode == 0:
            break
        assert exitcode == -9, (tmp_path / "out.txt").read_text()[-2000:]
        strikes += 1
        assert list((tmp_path / "run").rglob("*.tmp"))  # it was caught in the act
    assert strikes >= 3
    assert_same(tmp_path / "run", reference)


@pytest.mark.slow
def test_killed_run_with_workers_can_be_started_again_at_once(tmp_path):
    """Worker processes outlive a killed run for seconds; the folder must not stay locked by them."""
    slow = ("DATALOADER.NUM_WORKERS", 2, "TRAINER.TINY.SLEEP", 0.2)
    arguments = tiny_arguments(tmp_path / "images", tmp_path / "run", *slow)
    process = context.Process(target=start, args=(arguments, str(tmp_path / "out.txt")))
    process.start()
    until = time.time() + 60
    while not resume_file(tmp_path / "run").exists() and time.time() < until:
        time.sleep(0.02)
    time.sleep(0.1)  # inside the second epoch
    process.kill()
    process.join()
    train.run(tiny_arguments(tmp_path / "images", tmp_path / "run", "TRAINER.TINY.SLEEP", 0.2))
    assert run_state(tmp_path / "run") == "done"


def tiny_class():
    """The trainer as train.py imports it."""
    import_modules([TINY])
    return TRAINER_REGISTRY.get("Tiny")


class Stop(BaseException):
    """Stands for a kill inside this process."""


def interrupt(monkeypatch, epoch, *opts, root, output, **options):
    """Run until the step after `epoch` epochs and stop there."""
    trainer_class = tiny_class()
    original = trainer_class.forward_backward

    def forward_backward(self, batch):
        if self.epoch == epoch and self.batch_idx == 1:
            raise Stop
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_class, "forward_backward", forward_backward)
        with pytest.raises(Stop):
            train.run(tiny_arguments(root, output, *opts, **options))


@pytest.fixture
def stopped(tmp_path, root, reference, monkeypatch):
    """A run stopped in its third epoch."""
    interrupt(monkeypatch, 2, *OPTIONS, root=root, output=tmp_path / "run")
    return tmp_path / "run"


def test_stopped_run_is_incomplete_and_goes_on(stopped, root, reference, caplog):
    assert run_state(stopped) == "incomplete"
    train.run(tiny_arguments(root, stopped, *OPTIONS))
    assert "after epoch 2" in caplog.text
    assert_same(stopped, reference)
    assert run_state(stopped) == "done"
    log = (stopped / "log.txt").read_text()
    assert log.count("Finish training") == 1  # one log, not two
    assert log.count("epoch [2/4] batch [3/3]") == 1


def test_frequencies_workers_and_paths_may_change(stopped, root, reference):
    moved = stopped.rename(stopped.with_name("elsewhere"))
    changed = ("DATALOADER.NUM_WORKERS", 1, "TRAIN.RESUME_FREQ", 2, "VERBOSE", False)
    train.run(tiny_arguments(root.rename(root.with_name("pictures")), moved, *OPTIONS, *changed))
    assert_same(moved, reference)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (("OPTIM.LR", 0.1), "OPTIM.LR: 0.05 -> 0.1"),
        (("TRAINER.TINY.WIDTH", 8), "TRAINER.TINY.WIDTH: 4 -> 8"),
        (("DATASET.NAME", "TinyOthers"), "DATASET.NAME: TinyImages -> TinyOthers"),
        (("OPTIM.MAX_EPOCH", 9), "OPTIM.MAX_EPOCH: 4 -> 9"),
    ],
)
def test_another_config_is_refused(stopped, root, change, shown):
    before = (stopped / "resume.pth.tar").read_bytes()
    with pytest.raises(ValueError, match="another config") as err:
        train.run(tiny_arguments(root, stopped, *OPTIONS, *change))
    assert shown in str(err.value)
    assert (stopped / "resume.pth.tar").read_bytes() == before
    assert run_state(stopped) == "incomplete"


def test_refusal_lists_every_difference(stopped, root):
    with pytest.raises(ValueError, match="SEED: 1 -> 2") as err:
        train.run(tiny_arguments(root, stopped, *OPTIONS, "OPTIM.LR", 0.1, seed="2"))
    assert "OPTIM.LR: 0.05 -> 0.1" in str(err.value)


def test_damaged_state_is_an_error_that_names_the_file(stopped, root):
    path = stopped / "resume.pth.tar"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"resume\.pth\.tar"):
        train.run(tiny_arguments(root, stopped, *OPTIONS))


def test_resume_flag_continues_another_folder(stopped, root, tmp_path, reference):
    result = train.run(tiny_arguments(root, tmp_path / "new", *OPTIONS, flags=("--resume", str(stopped))))
    assert result["epochs"] == EPOCHS
    last, _, _ = (torch.load(tmp_path / "new" / "tiny" / "model.pth.tar-4", weights_only=True), None, None)
    for name, value in final_state(reference)[0]["state_dict"].items():
        assert torch.equal(last["state_dict"][name], value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train.run(tiny_arguments(root, tmp_path / "other", *OPTIONS, flags=("--resume", str(tmp_path / "nowhere"))))


def test_best_model_of_a_resumed_folder_comes_along(root, tmp_path, monkeypatch, reference):
    """With RESUME pointing elsewhere the best model is still the one of the other folder."""
    interrupt(monkeypatch, 3, *OPTIONS, root=root, output=tmp_path / "run")
    best = torch.load(tmp_path / "run" / "tiny" / "model-best.pth.tar", weights_only=True)
    result = train.run(tiny_arguments(root, tmp_path / "new", *OPTIONS, flags=("--resume", str(tmp_path / "run"))))
    moved = torch.load(tmp_path / "new" / "tiny" / "model-best.pth.tar", weights_only=True)
    expected = final_state(reference)[1]
    assert best["epoch"] == moved["epoch"] == expected["epoch"] < 4
    for name, value in expected["state_dict"].items():
        assert torch.equal(moved["state_dict"][name], value)
    assert result["selection"] == "val"


def test_best_figure_comes_back_from_epoch_files(root, tmp_path, monkeypatch):
    options = ("TRAIN.RESUME_FREQ", 0, "TRAIN.CHECKPOINT_FREQ", 1, "TEST.FINAL_MODEL", "best_val")
    interrupt(monkeypatch, 3, *options, root=root, output=tmp_path / "run")
    best = tmp_path / "run" / "tiny" / "model-best.pth.tar"
    before = best.read_bytes()
    assert torch.load(best, weights_only=True)["val_result"] == 100  # cannot be beaten by the last epoch
    train.run(tiny_arguments(root, tmp_path / "run", *options))
    assert best.read_bytes() == before


def test_epoch_files_alone_resume_without_random_states(root, tmp_path, monkeypatch, caplog):
    """As in Dassl; the learning rate must still be the one of the schedule."""
    options = ("TRAIN.RESUME_FREQ", 0, "TRAIN.CHECKPOINT_FREQ", 1)
    interrupt(monkeypatch, 2, *options, root=root, output=tmp_path / "run")
    assert not resume_file(tmp_path / "run").exists()
    train.run(tiny_arguments(root, tmp_path / "run", *options))
    assert "random states are not in the epoch files" in caplog.text
    last = torch.load(tmp_path / "run" / "tiny" / "model.pth.tar-4", weights_only=True)
    assert last["extra"] == {"steps": 12}  # the method's own state went on, too
    rates = {r["epoch"]: r["lr"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"}
    train.run(tiny_arguments(root, tmp_path / "whole", *options))
    assert rates == {r["epoch"]: r["lr"] for r in read_metrics(tmp_path / "whole") if r["kind"] == "train"}


def test_unseeded_run_keeps_its_drawn_seed(root, tmp_path, monkeypatch):
    interrupt(monkeypatch, 2, *OPTIONS, root=root, output=tmp_path / "run", seed="-1")
    seed = read_json(tmp_path / "run" / "env.json")["seed"]
    result = train.run(tiny_arguments(root, tmp_path / "run", *OPTIONS, seed="-1"))
    assert result["seed"] == seed >= 0
    other = train.run(tiny_arguments(root, tmp_path / "other", *OPTIONS, seed="-1"))
    assert other["seed"] != result["seed"]


def test_state_that_cannot_be_read_back_is_refused_when_written(root, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_class(), "extra_state", lambda self: {"rng": random.Random(0)})
    with pytest.raises(ValueError, match=r"extra.*Random"):
        train.run(tiny_arguments(root, tmp_path / "run"))


def test_config_hash_is_of_what_matters():
    cfg = command_module.get_cfg_default()
    same, other = cfg.clone(), cfg.clone()
    same.merge_from_list(["OUTPUT_DIR", "elsewhere", "DATALOADER.NUM_WORKERS", 0, "TRAIN.PROGRESS", True])
    other.merge_from_list(["OPTIM.LR", 0.1])
    assert config_hash(cfg) == config_hash(same) != config_hash(other)
    assert config_hash(cfg.dump()) == config_hash(cfg)
    assert config_differences(cfg.dump(), other) == ["OPTIM.LR: 0.0003 -> 0.1"]


def test_options_of_other_methods_do_not_make_another_config():
    def config(*options):
        return train.build_config(train.build_parser().parse_args(["--root", "data", "--trainer", "CoOp", *options]))

    stored = config().dump()
    assert config_differences(stored, config("TRAINER.MAPLE.N_CTX", "5")) == []
    assert config_differences(stored, config("TRAINER.COOP.N_CTX", "5")) == ["TRAINER.COOP.N_CTX: 16 -> 5"]
    foreign = config("TRAINER.MAPLE.N_CTX", "5")
    foreign.defrost()
    foreign.TRAINER.NAME = "NoSuchTrainer"  # which options are its own is not known, so all count
    found = config_differences(stored, foreign)
    assert "TRAINER.MAPLE.N_CTX: 2 -> 5" in found

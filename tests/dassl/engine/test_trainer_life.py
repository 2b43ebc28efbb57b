"""Hooks, log lines, records, steps and the order of a run."""

import json
import math
import re

import pytest
import torch
from tiny_runs import EPOCHS, tiny_arguments
from torch import nn

import train
from dassl.engine import TRAINER_REGISTRY, SimpleNet, SimpleTrainer, TrainerBase, build_trainer
from dassl.engine import command as command_module
from dassl.engine.records import MetricsLog, read_metrics
from dassl.engine.trainer import SummaryWriter

LINE = re.compile(
    r"^epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    r"loss (\d+\.\d{4}) \((\d+\.\d{4})\) .*lr (\d\.\d{4}e[-+]\d\d) eta \d+:\d\d:\d\d$",
    re.MULTILINE,
)


def tiny_trainer(tmp_path, *opts, **options):
    args = train.build_parser().parse_args(tiny_arguments(tmp_path / "images", tmp_path / "run", *opts, **options))
    cfg = train.build_config(args)
    command_module.set_random_seed(1)
    return build_trainer(cfg)


def test_hooks_run_in_order(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, "OPTIM.MAX_EPOCH", 2)
    calls = []

    def recorded(name, original):
        def called(*args, **options):
            calls.append(name)
            return original(*args, **options)

        return called

    names = ["before_train", "before_epoch", "run_epoch", "after_epoch", "save_resume_state", "after_train", "test"]
    for name in names:
        monkeypatch.setattr(trainer, name, recorded(name, getattr(trainer, name)))
    trainer.train()
    epoch = ["before_epoch", "run_epoch", "after_epoch", "save_resume_state"]
    assert calls == ["before_train", *epoch, *epoch, "after_train", "test"]


def test_log_has_the_lines_that_parsers_of_the_family_read(tiny, tmp_path):
    result = tiny()
    log = (tmp_path / "run" / "log.txt").read_text()
    lines = LINE.findall(log)
    assert [(int(e), int(b)) for e, _, b, _, *_ in lines] == [(e, b) for e in range(1, EPOCHS + 1) for b in (1, 2, 3)]
    # every batch shows the rate it was trained with: one warm-up epoch, then LR (1 + cos(pi (e - 2) / T)) / 2
    rates = [1e-5] + [0.05 * (1 + math.cos(math.pi * (e - 2) / EPOCHS)) / 2 for e in range(2, EPOCHS + 1)]
    assert [line[-1] for line in lines] == [f"{rate:.4e}" for rate in rates for _ in range(3)]
    values = [float(line[4]) for line in lines]
    assert float(lines[2][5]) == pytest.approx(sum(values[:3]) / 3, abs=1e-4)
    assert len(re.findall(r"^waiting for data: \d{1,3} % of the epoch$", log, re.MULTILINE)) == EPOCHS
    tail = log[log.index("Finish training\n") :]
    assert "\n=> result\n" in tail
    found = re.findall(r"\* accuracy: ([\d.e+-]+)%", tail)  # what the original parse_test_res.py looks for
    assert found == [f"{result['accuracy']:.1f}"]


def test_print_frequency_leaves_out_a_rest_but_never_a_short_epoch(tiny, tmp_path):
    tiny("TRAIN.PRINT_FREQ", 2, "OPTIM.MAX_EPOCH", 1, output="two")
    assert [line[2] for line in LINE.findall((tmp_path / "two" / "log.txt").read_text())] == ["2"]
    tiny("TRAIN.PRINT_FREQ", 10, "OPTIM.MAX_EPOCH", 1, output="ten")
    assert [line[2] for line in LINE.findall((tmp_path / "ten" / "log.txt").read_text())] == ["1", "2", "3"]


def test_records_say_what_the_log_says(tiny, tmp_path):
    result = tiny()
    records = read_metrics(tmp_path / "run")
    steps = [record for record in records if record["kind"] == "train"]
    assert [(r["epoch"], r["batch"], r["step"]) for r in steps] == [(1 + i // 3, 1 + i % 3, i) for i in range(12)]
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [r["images"] for r in epochs] == [18] * EPOCHS
    assert epochs[0]["loss"] == pytest.approx(sum(r["loss"] for r in steps[:3]) / 3)
    assert [r["accuracy"] for r in records if r["kind"] == "test"] == [result["accuracy"]]
    assert records[-1]["kind"] == "test"
    assert records[-1]["images"] == 12


def test_records_write_no_infinite_numbers_and_survive_a_torn_line(tmp_path):
    log = MetricsLog(tmp_path)
    log.write({"kind": "train", "epoch": 1, "loss": float("inf"), "value": torch.tensor(2.0)})
    log.write({"kind": "train", "epoch": 2})
    with open(log.path, "a") as file:
        file.write('{"kind": "train", "epo')
    assert read_metrics(tmp_path) == [
        {"kind": "train", "epoch": 1, "loss": None, "value": 2.0},
        {"kind": "train", "epoch": 2},
    ]
    log.rewind(1)
    log.write({"kind": "train", "epoch": 2, "again": True})
    lines = log.path.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads(lines[1])["again"] is True


def test_progress_is_shown_on_request_and_never_in_the_log(tiny, tmp_path, capsys):
    tiny("OPTIM.MAX_EPOCH", 1, output="quiet")
    assert capsys.readouterr().err == ""
    tiny("OPTIM.MAX_EPOCH", 1, "TRAIN.PROGRESS", True, output="shown")
    shown = capsys.readouterr().err
    assert "epoch 1/1" in shown
    assert "evaluate test" in shown
    assert "evaluate test" not in (tmp_path / "shown" / "log.txt").read_text()


def test_tensorboard_has_a_point_per_batch(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/lr", "test/accuracy"} <= set(events.Tags()["scalars"])
    rates = events.Scalars("train/lr")
    assert [point.step for point in rates] == list(range(12))
    assert rates[3].value == pytest.approx(0.05)
    assert SummaryWriter.__name__ == "SummaryWriter"


def test_best_validation_model_is_kept_and_deployed(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, "TEST.FINAL_MODEL", "best_val")
    figures = iter([50.0, 80.0, 80.0, 60.0])
    real, splits, weights = trainer.test, [], []

    def test(split=None):
        splits.append(split)
        weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return next(figures) if split == "val" else real(split)

    monkeypatch.setattr(trainer, "test", test)
    trainer.train()
    assert splits == ["val"] * EPOCHS + [None]
    best = torch.load(tmp_path / "run" / "tiny" / "model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (2, 80.0)  # strictly greater: the second 80 changes nothing
    for name, value in weights[-1].items():
        assert torch.equal(value, weights[1][name])
    assert (tmp_path / "run" / "tiny" / "checkpoint").read_text() == f"model.pth.tar-{EPOCHS}\n"


def test_an_evaluation_never_changes_the_training_after_it(tiny, tmp_path):
    tiny(output="last")
    tiny("TEST.FINAL_MODEL", "best_val", output="best")
    last, best = (
        torch.load(tmp_path / run / "tiny" / f"model.pth.tar-{EPOCHS}", weights_only=True) for run in ("last", "best")
    )
    for name, value in last["state_dict"].items():
        assert torch.equal(value, best["state_dict"][name])


def test_checkpoint_frequency_and_content(tiny, tmp_path):
    tiny("TRAIN.CHECKPOINT_FREQ", 3)
    folder = tmp_path / "run" / "tiny"
    names = [".sha256.json", "checkpoint", "model.pth.tar-3", "model.pth.tar-4"]
    assert sorted(path.name for path in folder.iterdir()) == names
    checkpoint = torch.load(folder / "model.pth.tar-3", weights_only=True)
    assert set(checkpoint) == {
        *("state_dict", "epoch", "optimizer", "scheduler", "val_result", "classnames", "classes", "config", "extra")
    }
    assert (checkpoint["epoch"], checkpoint["val_result"]) == (3, None)
    assert checkpoint["classnames"] == ["red", "green", "blue"]
    assert "TINY:" in checkpoint["config"]
    assert checkpoint["extra"] == {"steps": 9}


def test_validation_falls_back_to_test_with_a_warning(tiny, caplog):
    result = tiny("TEST.FINAL_MODEL", "best_val", dataset="TinyNoVal")
    assert "there is no validation set" in caplog.text
    assert result["selection"] == "test"


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_a_method_chose_itself_is_recorded(tiny, monkeypatch, split):
    monkeypatch.setattr(SimpleTrainer, "chosen_on", lambda self: split)
    assert tiny()["selection"] == split
    assert tiny("TEST.FINAL_MODEL", "best_val", output="best")["selection"] == split  # test outweighs val


def test_data_without_test_images_needs_no_test(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.test_loader = None
    with pytest.raises(ValueError, match=r"TinyImages has no test images; set TEST\.NO_TEST"):
        trainer.test()
    with pytest.raises(ValueError, match="split to evaluate is 'train'"):
        trainer.test("train")


def test_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(tiny, tmp_path):
    with pytest.raises(FloatingPointError, match=r"epoch 2, batch 2: Loss is infinite or NaN! \(decay = nan\)"):
        tiny("TRAINER.TINY.BREAK_AT", 4)
    assert torch.load(tmp_path / "run" / "resume.pth.tar", weights_only=True)["epoch"] == 1
    assert "epoch 2, batch 2" in (tmp_path / "run" / "FAILED").read_text()


def test_loss_of_a_step_of_its_own_is_checked_too(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path)
    monkeypatch.setattr(trainer, "forward_backward", lambda batch: {"loss_x": float("inf"), "acc": 1.0})
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch 1: .*loss_x = inf"):
        trainer.train()


def test_trainer_without_a_model_is_evaluated(tiny, tmp_path):
    result = tiny(trainer="TinyFixed")
    assert (result["mode"], result["epochs"], result["selection"]) == ("train", 0, None)
    assert result["trainable_parameters"] == 0
    assert result["accuracy"] > 50  # the mean colour tells the class
    assert not list((tmp_path / "run").glob("*/model*"))


@pytest.mark.parametrize(("count", "steps"), [("train_x", 3), ("train_u", 4), ("smaller_one", 3)])
def test_unlabelled_batches_come_along(tmp_path, count, steps):
    trainer = tiny_trainer(
        tmp_path,
        *("TRAIN.COUNT_ITER", count, "DATALOADER.TRAIN_U.SAME_AS_X", False, "DATALOADER.TRAIN_U.BATCH_SIZE", 4),
        *("OPTIM.MAX_EPOCH", 1),
        trainer="TinyXU",
    )
    trainer.train()
    assert trainer.seen == [(6, 4)] * steps  # 18 images: 3 batches of 6, 4 of 4; the shorter one starts again


def test_base_class_names_its_models():
    trainer = TrainerBase()
    trainer.register_model("a", nn.Linear(1, 1))
    with pytest.raises(ValueError, match="duplicate"):
        trainer.register_model("a", nn.Linear(1, 1))
    with pytest.raises(KeyError, match="no model 'b'"):
        trainer.get_model_names("b")
    with pytest.raises(ValueError, match="mode is 'off'"):
        trainer.set_model_mode("off")
    assert trainer.get_model_names() == ["a"]
    trainer.set_model_mode("eval")
    assert not trainer._models["a"].training

    class Early(TrainerBase):
        def __init__(self):
            self.register_model("a", nn.Linear(1, 1))
            super().__init__()

    with pytest.raises(AttributeError, match="super"):
        Early()


def test_separate_steps_equal_the_combined_one(tmp_path):
    def weights(combined):
        trainer = tiny_trainer(tmp_path)
        trainer.set_model_mode("eval")
        batch = next(iter(trainer.train_loader_x))
        loss = nn.functional.cross_entropy(trainer.model(batch["img"]), batch["label"])
        if combined:
            trainer.model_backward_and_update(loss)
        else:
            trainer.model_zero_grad()
            trainer.model_backward(loss)
            trainer.model_update()
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    assert torch.equal(weights(True), weights(False))


def test_simple_net_is_a_torchvision_network_with_a_new_classifier():
    cfg = command_module.get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "resnet18", False
    cfg.MODEL.HEAD.NAME, cfg.MODEL.HEAD.HIDDEN_LAYERS = "mlp", (8,)
    net = SimpleNet(cfg, cfg.MODEL, 5).eval()
    logits, feature = net(torch.rand(2, 3, 32, 32), return_feature=True)
    assert logits.shape == (2, 5)
    assert feature.shape == (2, 8)
    assert torch.equal(logits, net.classifier(feature))
    cfg.MODEL.BACKBONE.NAME = "resnet19"
    with pytest.raises(ValueError, match=r"resnet19.*do you mean resnet"):
        SimpleNet(cfg, cfg.MODEL, 5)


def test_unknown_trainer_lists_the_known_and_suggests(tmp_path):
    with pytest.raises(ValueError, match=r"'Tiney' \(do you mean Tiny\?\).*TinyXU.*--import"):
        tiny_trainer(tmp_path, trainer="Tiney")
    assert "Tiny" in TRAINER_REGISTRY.registered_names()

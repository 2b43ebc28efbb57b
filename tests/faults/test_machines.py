"""A run keeps the precision it began with; other machines are refused or marked; auto is what is fast."""

import shutil

import pytest
import torch
import yaml
from tiny_runs import tiny_arguments

import train
from dassl.engine import machine, precision, resume, simple
from dassl.engine.machine import check_same_machine, machine_differences
from dassl.engine.precision import Precision, auto_precision
from dassl.engine.simple import SimpleTrainer
from tools import parse_test_res


@pytest.fixture
def processor(monkeypatch):
    """processor(has_bfloat16): what the processor of this machine can do, from now on."""

    def choose(fast):
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: fast)
        monkeypatch.setattr(precision, "half_cost", lambda: 0.5 if fast else 6.2)

    return choose


@pytest.fixture
def stopped(tiny, monkeypatch, processor):
    """A run that began where auto is amp, stopped after two epochs."""

    def stop(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    processor(True)
    with monkeypatch.context() as patch:
        patch.setattr(SimpleTrainer, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny("TRAINER.TINY.PREC", "auto")


def prec(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["TRAINER"]["TINY"]["PREC"]


def test_auto_goes_on_as_it_began(tiny, tmp_path, stopped, processor):
    whole = tiny("TRAINER.TINY.PREC", "auto", output="whole")
    processor(False)
    other = tiny("TRAINER.TINY.PREC", "auto", output="other")
    result = tiny("TRAINER.TINY.PREC", "auto")
    assert (prec(tmp_path / "run"), prec(tmp_path / "other")) == ("amp", "fp32")
    assert (result["machine"]["precision"], result["ece"]) == ("amp", whole["ece"])
    assert other["machine"]["precision"] == "fp32"
    assert result["protocol_hash"] == other["protocol_hash"]
    assert result["fingerprint_hash"] != other["fingerprint_hash"]
    assert result["fingerprint_hash"] == whole["fingerprint_hash"]
    assert tiny("TRAINER.TINY.PREC", "auto") == result  # and is done for the same command


def test_another_precision_by_name_is_refused(tiny, stopped):
    with pytest.raises(ValueError, match="PREC: amp -> fp32"):
        tiny("TRAINER.TINY.PREC", "fp32")


BEFORE = {
    "precision": "amp",
    "tf32": None,
    "device": "cpu",
    "torch": "2.9.0",
    "processes": 1,
    "workers": None,
    "threads": 4,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [("precision", "fp32"), ("tf32", True), ("device", "cuda"), ("torch", "2.9.1"), ("processes", 2), ("workers", 3)],
)
def test_other_machines_are_refused_or_noted(tmp_path, caplog, name, value):
    now = {**BEFORE, name: value}
    with pytest.raises(ValueError, match=f"{name} .* -> {value}.*TRAIN.OTHER_MACHINE"):
        check_same_machine(tmp_path, BEFORE, now, False)
    check_same_machine(tmp_path, BEFORE, now, True)
    assert "another kind of machine" in caplog.text
    check_same_machine(tmp_path, BEFORE, BEFORE, False)


def test_other_threads_are_a_warning(tmp_path, caplog):
    check_same_machine(tmp_path, BEFORE, {**BEFORE, "threads": 1}, False)
    assert "1 CPU threads and began with 4" in caplog.text


def test_a_resumed_run_on_another_torch(tiny, stopped, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ValueError, match=r"torch .* -> 9\.9\.9"):
        tiny("TRAINER.TINY.PREC", "auto")
    result = tiny("TRAINER.TINY.PREC", "auto", "TRAIN.OTHER_MACHINE", True)
    assert result["machine"]["torch"] == "9.9.9"
    assert len(result["earlier_machines"]) == 1
    assert machine_differences({"a": result})[0].endswith(", then 9.9.9 in a")


@pytest.mark.parametrize("name", ["precision", "device", "torch", "processes", "workers"])
def test_averages_over_different_machines_are_marked(name):
    results = {seed: {"machine": BEFORE} for seed in ("seed1", "seed2")}
    assert machine_differences(results) == []
    results["seed3"] = {"machine": {**BEFORE, name: "x"}}
    before = "" if BEFORE[name] is None else f"{BEFORE[name]} in seed1, seed2; "
    assert machine_differences(results) == ([f"{name}: {before}x in seed3"] if before else [])


def test_old_results_are_marked_too():
    old = {"precision": "amp", "device": "cuda:0", "processes": 1}
    new = {"machine": {**BEFORE, "device": "cuda"}}
    assert machine_differences({"a": old, "b": new}) == []
    assert machine_differences({"a": {**old, "precision": "fp32"}, "b": new}) == ["precision: fp32 in a; amp in b"]


def test_a_mean_over_seeds_is_marked(tiny, tmp_path, processor, capsys):
    for seed, fast in (("1", True), ("2", False)):
        processor(fast)
        tiny("TRAINER.TINY.PREC", "auto", output=f"all/seed{seed}", seed=seed)
    capsys.readouterr()
    assert parse_test_res.main([str(tmp_path / "all")]) == 0
    assert "averaged over different machines: precision: amp in seed1; fp32 in seed2" in capsys.readouterr().out


def test_half_precision_on_a_slow_processor_warns_with_a_figure(processor, caplog):
    processor(False)
    for name in ("amp", "bf16"):
        caplog.clear()
        assert Precision(name, "cpu").name == name
        assert "6.2 times" in caplog.text
        assert "no instructions" in caplog.text
    caplog.clear()
    processor(True)
    Precision("amp", "cpu")
    assert not caplog.text


@pytest.mark.parametrize(("has", "cost", "found"), [(True, 0.4, "amp"), (True, 1.05, "fp32"), (False, 0.4, "fp32")])
def test_auto_is_never_slower(monkeypatch, has, cost, found):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has)
    monkeypatch.setattr(precision, "half_cost", lambda: cost)
    assert auto_precision(torch.device("cpu")) == found


def test_half_precision_that_is_slow_in_spite_of_its_instructions_warns_too(processor, monkeypatch, caplog):
    processor(True)
    for cost, warned in ((1.05, False), (1.3, True)):
        monkeypatch.setattr(precision, "half_cost", lambda cost=cost: cost)
        Precision("bf16", "cpu")
        assert ("1.3 times" in caplog.text) is warned
    assert "no instructions" not in caplog.text


def test_the_cost_of_half_precision_is_a_ratio():
    assert 0.02 < precision.half_cost() < 200
    assert precision.half_cost() == precision.half_cost()  # measured once


def test_a_report_names_methods_averaged_over_different_machines():
    from pathlib import Path
    from types import SimpleNamespace

    from experiments.reports.document import Report

    entries = [
        SimpleNamespace(
            method=method, folder=Path(f"{method}{seed}"), result={"machine": {**BEFORE, "precision": name}}
        )
        for method, seed, name in (("A", 1, "amp"), ("A", 2, "fp32"), ("B", 1, "amp"), ("B", 2, "amp"))
    ]
    assert Report(None, "", tuple(entries), (), (), ()).machines == ["A: precision: amp in A1; fp32 in A2"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """begun(precision): the folder of a run that began in amp or fp32 and was stopped after two epochs."""
    known = {}

    def run(name):
        if name not in known:
            known[name] = folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(precision, "auto_precision", lambda device: name)
                patch.setattr(machine, "auto_precision", lambda device: name)
                patch.setattr(precision, "half_cost", lambda: 0.5)
                patch.setattr(SimpleTrainer, "after_epoch", stop_after_two)
                for module in (resume, simple):
                    patch.setattr(module, "machine_of", with_workers)
                with pytest.raises(KeyboardInterrupt):
                    train.run(tiny_arguments(folder / "images", folder / "run", *AUTO))
        return known[name]

    return run


AUTO = ("TRAINER.TINY.PREC", "auto", "DATASET.CACHE_DIR", "picks")
ALLOWED = ("TRAIN.OTHER_MACHINE", True)
CONTINUED, MARKED = "goes on as it began", "goes on and is marked"


def with_workers(trainer, real=machine.machine_of):
    """As of a run on shards, which one worker reads."""
    return {**real(trainer), "workers": 1}


def stop_after_two(trainer):
    if trainer.epoch == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("begin", "now", "options", "outcome"),
    [
        ("amp", {"auto": "fp32"}, (), CONTINUED),
        ("fp32", {"auto": "amp"}, (), CONTINUED),
        ("amp", {}, ("TRAINER.TINY.PREC", "fp32"), "PREC: amp -> fp32"),
        ("fp32", {}, ("TRAINER.TINY.PREC", "amp"), "PREC: fp32 -> amp"),
        ("fp32", {"torch": "9.9.9"}, (), "torch .* -> 9.9.9"),
        ("fp32", {"torch": "9.9.9"}, ALLOWED, MARKED),
        ("fp32", {"device": "cuda"}, (), "device cpu -> cuda"),
        ("fp32", {"workers": 2}, (), "workers 1 -> 2"),
        ("fp32", {"workers": 2}, ALLOWED, MARKED),
        ("fp32", {"processes": 2}, (), "processes 1 -> 2"),
        ("fp32", {"saved_processes": 2}, (), "of a run with 2 processes, this one has 1"),
        ("amp", {"threads": 3}, (), CONTINUED),
    ],
)
def test_a_run_never_goes_on_unnoticed_on_another_machine(begun, tmp_path, monkeypatch, begin, now, options, outcome):
    """12 planted mixes: each is refused with both values, goes on as it began, or is marked in result and report."""
    place = begun(begin)
    shutil.copytree(place / "run", tmp_path / "run")
    changed = {key: value for key, value in now.items() if key not in ("auto", "saved_processes")}
    for module in (resume, simple):
        monkeypatch.setattr(module, "machine_of", lambda trainer: {**with_workers(trainer), **changed})
    monkeypatch.setattr(machine, "auto_precision", lambda device: now.get("auto", begin))
    monkeypatch.setattr(precision, "half_cost", lambda: 0.5)
    if "saved_processes" in now:
        path = tmp_path / "run" / "resume.pth.tar"
        state = torch.load(path, weights_only=True)
        torch.save({**state, "processes": state["processes"] * 2}, path)
        (tmp_path / "run" / ".sha256.json").unlink()
    command = tiny_arguments(place / "images", tmp_path / "run", *AUTO, *options)
    if outcome not in (CONTINUED, MARKED):
        with pytest.raises(ValueError, match=outcome):
            train.run(command)
        return
    result = train.run(command)
    assert result["machine"]["precision"] == begin == prec(tmp_path / "run")
    assert bool(machine_differences({"a": result})) is (outcome == MARKED)
    assert len(result.get("earlier_machines", [])) == (1 if changed else 0)

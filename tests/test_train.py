"""The command line: flags, precedence, imports, and one clear line for every kind of bad input."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from yacs.config import CfgNode

import train
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine import command as command_module

ROOT = Path(train.__file__).parent
TINY = str(ROOT / "tests" / "dassl" / "engine" / "tiny_method.py")
SMALL = [
    *("DATASET.NAME", "TinyImages", "INPUT.SIZE", "(8, 8)", "INPUT.TRANSFORMS", "['normalize']"),
    *("DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "6", "OPTIM.MAX_EPOCH", "1"),
]


def config(*arguments):
    return train.build_config(train.build_parser().parse_args(list(arguments)))


def command(tmp_path, *flags, opts=()):
    given = ["--import", TINY, "--root", str(tmp_path / "images"), "--output-dir", str(tmp_path / "run")]
    return [*given, "--trainer", "Tiny", *flags, *SMALL, *opts]


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_every_flag_reaches_its_key():
    cfg = config(
        *(
            "--root",
            "data",
            "--output-dir",
            "out",
            "--resume",
            "old",
            "--seed",
            "3",
            "--trainer",
            "A",
            "--backbone",
            "B",
        ),
        *("--source-domains", "a", "b", "--target-domains", "c", "--transforms", "normalize", "--head", "mlp"),
    )
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.RESUME, cfg.SEED) == ("data", "out", "old", 3)
    assert (cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("A", "B", "mlp")
    assert (cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS) == (("a", "b"), ("c",))
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.is_frozen()


def test_seed_zero_is_a_seed(tmp_path):
    assert config("--seed", "0").SEED == 0
    assert config().SEED == -1
    first, second = (
        train.run([*command(tmp_path, "--seed", "0", "--output-dir", str(tmp_path / name))]) for name in ("a", "b")
    )
    assert first["seed"] == second["seed"] == 0
    weights = [torch.load(tmp_path / n / "tiny" / "model.pth.tar-1", weights_only=True)["state_dict"] for n in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_fused_attention_has_an_off_switch(tmp_path):
    states = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    for chosen in (False, True):
        folder = ("--output-dir", str(tmp_path / str(chosen)))
        train.run(command(tmp_path, *folder, opts=("TRAIN.FUSED_ATTENTION", str(chosen))))
        assert [state() for state in states] == [chosen, chosen]


def test_empty_text_is_a_value_too(tmp_path):
    file = write(tmp_path / "method.yaml", {"MODEL": {"HEAD": {"NAME": "mlp"}}, "DATASET": {"SOURCE_DOMAINS": ["a"]}})
    assert config("--config-file", file, "--head", "").MODEL.HEAD.NAME == ""


def test_later_wins(tmp_path):
    data = write(
        tmp_path / "data.yaml", {"OPTIM": {"LR": 0.1, "MAX_EPOCH": 2, "GAMMA": 0.2}, "SEED": 1, "VERBOSE": False}
    )
    method = write(tmp_path / "method.yaml", {"OPTIM": {"LR": 0.2, "MAX_EPOCH": 3}, "SEED": 2})
    flags = ["--dataset-config-file", data, "--config-file", method, "--seed", "4"]
    cfg = config(*flags, "OPTIM.MAX_EPOCH", "5")
    assert (cfg.VERBOSE, cfg.OPTIM.GAMMA, cfg.OPTIM.LR, cfg.SEED, cfg.OPTIM.MAX_EPOCH) == (False, 0.2, 0.2, 4, 5)
    assert config(*flags, "SEED", "6").SEED == 6  # pairs come after flags


def test_options_of_every_registered_trainer_are_known():
    cfg = config("--import", TINY)
    for name in TRAINER_REGISTRY.registered_names():
        defaults = getattr(TRAINER_REGISTRY.get(name), "defaults", None)
        for node in defaults() if defaults else ():
            assert set(defaults()[node]) <= set(cfg.TRAINER[node])


def test_trainers_that_disagree_about_a_default_are_refused():
    class Other(TrainerX):
        @staticmethod
        def defaults():
            return CfgNode({"TINY": {"WIDTH": 5}})

    config("--import", TINY)
    TRAINER_REGISTRY.register(Other)
    try:
        with pytest.raises(ValueError, match=r"Other declares TRAINER.TINY.WIDTH with default 5, .* with 4"):
            config()
    finally:
        del TRAINER_REGISTRY._obj_map["Other"]


MODULE = """
from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    pass
"""


def test_import_takes_files_and_modules_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_file.py").write_text(MODULE.format(name="FromFile"))
    (tmp_path / "my_module.py").write_text(MODULE.format(name="FromModule"))
    (tmp_path / "my_yaml.py").write_text(MODULE.format(name="FromYaml"))
    file = write(tmp_path / "c.yaml", {"IMPORTS": ["my_yaml.py"]})
    for _ in range(2):
        cfg = config("--import", "my_file.py", "--import", "my_module", "--config-file", file)
    assert {"FromFile", "FromModule", "FromYaml"} <= set(TRAINER_REGISTRY.registered_names())
    assert cfg.IMPORTS == ("my_file.py", "my_module")


def test_main_can_be_called_again_and_again(tmp_path):
    results = [train.main(command(tmp_path, "--seed", "1", "--output-dir", str(tmp_path / n))) for n in "abc"]
    assert len({str(r["fingerprint_hash"]) for r in results}) == 1
    for name in "abc":
        assert (tmp_path / name / "log.txt").read_text().count("Finish training") == 1
    assert sys.stdout.write  # given back
    assert type(sys.stdout).__name__ != "Logger"


def bad(flags=(), opts=()):
    return {"flags": flags, "opts": opts}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (bad(opts=("OPTIM.LEARNING_RATE", "1")), "unknown key OPTIM.LEARNING_RATE"),
        (bad(opts=("OPTIM.MAX_EPOCHS", "1")), "do you mean OPTIM.MAX_EPOCH"),
        (bad(opts=("OPTIM.LR", "fast")), "OPTIM.LR is 'fast'"),
        (bad(opts=("OPTIM.MAX_EPOCH", "0")), "OPTIM.MAX_EPOCH is 0, expected 1 or more"),
        (
            bad(opts=("DATASET.SUBSAMPLE_CLASSES", "old")),
            "DATASET.SUBSAMPLE_CLASSES is 'old', expected all, base, new",
        ),
        (bad(opts=("OPTIM.LR",)), "odd number"),
        (bad(("--target-domains", "a")), "--target-domains takes every name up to the next flag, DATASET.NAME too"),
        (bad(opts=("--seed", "1")), "--seed stands among the KEY VALUE pairs"),
        (bad(("--trainer", "Tinny")), "TRAINER.NAME is 'Tinny' (do you mean Tiny?)"),
        (bad(("--trainer", "")), "TRAINER.NAME is ''"),
        (
            bad(opts=("DATASET.NAME", "TinyImage")),
            "DATASET.NAME is 'TinyImage' (do you mean TinyImages?), expected one of",
        ),
        (bad(("--root", "/no/such/root/images")), 'DATASET.ROOT "/no/such/root/images" does not exist'),
        (bad(("--config-file", "no.yaml")), "no.yaml"),
        (bad(("--import", "no_such_module")), "cannot import 'no_such_module'"),
        (bad(("--import", "no_such_file.py")), "there is no file"),
        (bad(("--eval-only", "--model-dir", "/no/such/model")), "/no/such/model"),
        (bad(("--seed", str(2**40))), "SEED"),
        (bad(opts=("TRAINER.TINY.BREAK_AT", "0")), "epoch 1, batch 1: Loss is infinite or NaN!"),
        (bad(opts=("TEST.EVALUATOR", "Regression")), "Classification"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, capsys, case, expected):
    with pytest.raises(SystemExit) as stop:
        train.main(command(tmp_path, *case["flags"], opts=case["opts"]))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert "Traceback" not in error


def test_all_faults_of_a_command_line_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(command(tmp_path, opts=("OPTIM.RATE", "1", "SEEED", "2", "OPTIM.MAX_EPOCH", "ten")))
    error = capsys.readouterr().err
    assert all(key in error for key in ("OPTIM.RATE", "SEEED", "OPTIM.MAX_EPOCH is 'ten'"))


def test_verbose_errors_show_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="Tinny"):
        train.main(command(tmp_path, "--verbose-errors", "--trainer", "Tinny"))


def test_faults_of_the_code_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(command_module, "build_trainer", lambda cfg: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(command(tmp_path))
    assert (tmp_path / "run" / "FAILED").exists()


def test_interrupt_leaves_a_run_that_can_be_continued(tmp_path, monkeypatch, capsys):
    def interrupted(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_module, "build_trainer", interrupted)
    with pytest.raises(SystemExit) as stop:
        train.main(command(tmp_path))
    assert stop.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "run" / "FAILED").exists()


def test_images_that_are_missing_or_do_not_decode(tmp_path, capsys):
    train.main(command(tmp_path))
    (tmp_path / "images" / "red-0.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        train.main(command(tmp_path, "--output-dir", str(tmp_path / "second")))
    assert "red-0.png" in capsys.readouterr().err
    assert (tmp_path / "second" / "FAILED").exists()


@pytest.mark.parametrize("epoch", ["0", "-1", "best", "1.5"])
def test_load_epoch_is_a_number_or_last(epoch, capsys):
    with pytest.raises(SystemExit):
        train.build_parser().parse_args(["--load-epoch", epoch])
    assert "from 1, or last" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_program(tmp_path):
    """Help, exit code and messages of a process of its own, started in another folder."""
    program = [sys.executable, str(ROOT / "train.py")]
    shown = subprocess.run([*program, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0
    for flag in ("--root", "--eval-only", "--load-epoch", "--import", "KEY VALUE", "torchrun"):
        assert flag in shown.stdout
    failed = subprocess.run(
        [*program, *command(tmp_path, opts=("A", "1"))], capture_output=True, text=True, cwd=tmp_path
    )
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-2].startswith("error: 1 error in the options KEY VALUE")
    assert "unknown key A" in failed.stderr


@pytest.mark.parametrize(
    "command",
    ["train.py", "sweep.py", "report.py", "parse_test_res.py", "-m align_prompt", "-m datasets.prepare"]
    + ["-m datasets.doctor", "-m benchmarks", "-m tools.new_method", "-m dassl.verify"],
)
def test_help_does_not_import_torch(command):
    script = [sys.executable, "-X", "importtime", *command.split(), "--help"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]

"""Cost of every method: learned parameters, training step, evaluation speed and peak memory, against the plain way.

Each method runs in a separate process, on an embedded data set, with the embedded model or with random weights of
ViT-B/16's shape. `plain` is the same method with all 77 text positions, and with the text
encoded again for every batch of an evaluation, as the released codes do. Seconds are processor seconds of all threads;
memory is the process's peak during training. Methods without training steps have no step figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import clip
from dassl.config.files import config_exists, config_names
from dassl.engine import TRAINER_REGISTRY, build_trainer, command
from dassl.utils import count_num_param

from .align_step import VIT_B16, Clock, compute_plainly, peak_gib
from .report import environment

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "trainers"
COLUMNS = ("parameters", "step_s", "plain / step", "images_s", "images_s / plain", "peak_gib", "plain / peak")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="trainers (default: every registered one)")
    parser.add_argument("--backbone", choices=("emoji", "vit_b16"), default="emoji", help="default %(default)s")
    parser.add_argument(
        "--dataset", default="emoji_animals", metavar="NAME", help="config file (default %(default)s: 109 classes)"
    )
    parser.add_argument("--batch", type=int, default=4, help="images of a training step (default %(default)s)")
    parser.add_argument("--test-batch", type=int, default=20, help="images of a test batch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps and test batches (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--root", default=str(ROOT / "data"), help="folder of the data sets (default %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)


def methods() -> list[str]:
    """Registered trainers with a config for the embedded model."""
    return [
        name for name in sorted(TRAINER_REGISTRY.registered_names()) if config_exists(CONFIGS / name / "emoji.yaml")
    ]


def config_file(method: str, backbone: str) -> Path:
    """The method's own settings for a backbone: those of base-to-new, else of another setting, else of `emoji`."""
    folder = CONFIGS / method
    found = [name for name in config_names(folder) if name.startswith("vit_b16")] if backbone == "vit_b16" else []
    name = "vit_b16_base2new" if "vit_b16_base2new" in found else next(iter(found), "emoji")
    return folder / f"{name}.yaml"


def check_names(chosen: list[str]) -> None:
    """Ends the program if one is not a method."""
    unknown = sorted(set(chosen) - set(methods()))
    if unknown:
        raise SystemExit(f"error: no method {', '.join(unknown)}; known: {', '.join(methods())}")


def flags(method: str, config: Path, dataset: str, root: str, output: str, options: dict[str, object]) -> list[str]:
    """Arguments of train.py for a method with seed 1."""
    chosen = ["--root", root, "--trainer", method, "--seed", "1", "--output-dir", output, "--config-file", str(config)]
    chosen += ["--dataset-config-file", str(ROOT / "configs" / "datasets" / f"{dataset}.yaml")]
    return [*chosen, *[str(item) for pair in options.items() for item in pair]]


def trainer_of(argv: list[str]):
    """The trainer that train.py builds from its arguments."""
    return build_trainer(command.build_config(command.build_parser().parse_args(argv)))


def build(arguments: argparse.Namespace, output: str):
    """The trainer that is measured."""
    method = arguments.worker
    options = {"DATALOADER.TRAIN_X.BATCH_SIZE": arguments.batch, "DATALOADER.TEST.BATCH_SIZE": arguments.test_batch}
    options |= {"DATALOADER.NUM_WORKERS": 0, "DATASET.NUM_SHOTS": 4, f"TRAINER.{node(method)}.PREC": "fp32"}
    if arguments.weights:
        options |= {"MODEL.BACKBONE.NAME": arguments.weights, "INPUT.SIZE": "(224, 224)"}
    config = config_file(method, arguments.backbone)
    return trainer_of(flags(method, config, arguments.dataset, arguments.root, output, options))


def node(method: str) -> str:
    return TRAINER_REGISTRY.get(method).node


def work(arguments: argparse.Namespace) -> dict[str, float | None]:
    """Figures of one method in this process."""
    torch.set_num_threads(arguments.threads)
    if arguments.plain:
        compute_plainly()
    with tempfile.TemporaryDirectory() as output:
        trainer = build(arguments, output)
        figures: dict[str, float | None] = {"parameters": count_num_param(trainer.model.learner), "step_s": None}
        trains = trainer.by_steps and trainer.max_epoch > 0
        if trains:
            batch = next(iter(trainer.train_loader_x))
            trainer.set_model_mode("train")
            trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 10**9  # no epoch ends here
            seconds = []
            for _ in range(1 + arguments.rounds):
                with Clock() as clock:
                    trainer.forward_backward(batch)
                seconds.append(clock.seconds["cpu"])
            figures["step_s"] = statistics.median(seconds[1:])
        figures["peak_gib"] = peak_gib()
        figures["images_s"] = evaluation_speed(trainer, arguments)
    return figures


@torch.no_grad()
def evaluation_speed(trainer, arguments: argparse.Namespace) -> float:
    """Images per processor second; the text is encoded once, or for every batch in the plain way."""
    trainer.set_model_mode("eval")
    images = next(iter(trainer.test_loader))["img"].to(trainer.device)
    start = time.process_time()
    trainer.text = None
    if not (arguments.plain or trainer.model.learner.conditional):
        trainer.text = trainer.model.encode_text()
    for _ in range(arguments.rounds):
        trainer.model_inference(images)
    return arguments.rounds * len(images) / (time.process_time() - start)


def ask_worker(benchmark: str, method: str, options: dict[str, object], *switches: str) -> Any:
    """Measurements of one method, made in a separate process."""
    command = [sys.executable, "-m", "benchmarks", benchmark, "--worker", method, *switches]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"the process of {method} ended with status {child.returncode}:\n{child.stderr[-2000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def measure(method: str, arguments: argparse.Namespace, weights: str | None, plain: bool) -> dict[str, float | None]:
    keys = ("backbone", "dataset", "batch", "test_batch", "rounds", "threads", "root")
    options = {key: getattr(arguments, key) for key in keys} | ({"weights": weights} if weights else {})
    return ask_worker("methods", method, options, *(["--plain"] if plain else []))


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def row(ours: dict[str, float | None], plain: dict[str, float | None]) -> dict[str, float | None]:
    """Figures of one method, in the order of COLUMNS."""
    values = (
        *(ours["parameters"], ours["step_s"], ratio(plain["step_s"], ours["step_s"])),
        *(ours["images_s"], ratio(ours["images_s"], plain["images_s"])),
        *(ours["peak_gib"], ratio(plain["peak_gib"], ours["peak_gib"])),
    )
    return dict(zip(COLUMNS, values))


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def run(arguments: argparse.Namespace) -> None:
    if arguments.worker is not None:
        print(json.dumps(work(arguments)))
        return
    chosen = arguments.methods or methods()
    check_names(chosen)
    keys = ("backbone", "dataset", "batch", "test_batch", "rounds", "threads")
    settings = {key: getattr(arguments, key) for key in keys}
    table = []
    with tempfile.TemporaryDirectory() as folder:
        weights = None
        if arguments.backbone == "vit_b16":
            torch.manual_seed(0)
            weights = str(Path(folder) / "vit_b16.safetensors")
            clip.save_model(clip.CLIP(**VIT_B16), weights)
        for method in chosen:
            figures = row(*(measure(method, arguments, weights, plain) for plain in (False, True)))
            table.append((method, figures))
            common = {"settings": {"method": method, **settings}, **environment()}
            for name, value in figures.items():
                print(json.dumps({"benchmark": "methods", "figure": name, "value": value, **common}), flush=True)
    print("| method | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for method, figures in table:
        print(f"| {method} | " + " | ".join(shown(figures[name]) for name in COLUMNS) + " |")

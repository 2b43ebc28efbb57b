"""Cost of every method: parameters, operations, training step, evaluation speed and memory, beside CoOp's.

Each method runs in a separate process, on an embedded data set, with the embedded model or with random weights of
ViT-B/16's shape. Seconds are processor seconds of all threads. A step of CoOp, and a test batch of it, are measured in
the same process in turn, so that a ratio to it does not depend on what else the machine does. Operations are counted by
torch's `FlopCounterMode` (two for a multiplication and an addition; matrix products and convolutions). Memory is what a
training step adds to the process. Methods without training steps have the seconds of their fit instead.

With --plain each method also runs the plain way, as the released codes do: with all 77 text positions, and with the
text encoded again for every batch of an evaluation. `--page FILE` writes the tables as a page of the docs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import clip
from dassl.config.files import config_exists, config_names
from dassl.engine import TRAINER_REGISTRY, build_trainer, command
from dassl.utils import count_num_param

from .align_step import VIT_B16, Clock, compute_plainly, peak_gib
from .report import environment

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "trainers"
COLUMNS = (
    *("parameters", "step_gflop", "step_s", "step / CoOp", "train_images_s", "step_gib", "gib / CoOp"),
    *("text_gflop", "image_gflop", "images_s", "CoOp / images_s"),
)
PLAIN = ("plain / step", "images_s / plain", "plain / peak")
ADAPTED = 2  # test images of a method that adapts to each of them
LANGUAGE_MODEL = {
    "APE": "sentences about the classes, instead of templates",
    "ATPrompt": "attributes of the data set",
    "CoPrompt": "sentences about the classes, in training",
}
"""Text of a language model that the paper's form of a method reads; what is measured here does without."""


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
    parser.add_argument("--plain", action="store_true", help="also measure each method the plain way")
    parser.add_argument("--page", metavar="FILE", help="write the tables as a Markdown page")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--plainly", action="store_true", help=argparse.SUPPRESS)


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


def build(arguments: argparse.Namespace, method: str, output: str):
    """The trainer that is measured."""
    options = {"DATALOADER.TRAIN_X.BATCH_SIZE": arguments.batch, "DATALOADER.TEST.BATCH_SIZE": arguments.test_batch}
    options |= {"DATALOADER.NUM_WORKERS": 0, "DATASET.NUM_SHOTS": 4, f"TRAINER.{node(method)}.PREC": "fp32"}
    if arguments.weights:
        options |= {"MODEL.BACKBONE.NAME": arguments.weights, "INPUT.SIZE": "(224, 224)"}
    config = config_file(method, arguments.backbone)
    return trainer_of(flags(method, config, arguments.dataset, arguments.root, output, options))


def node(method: str) -> str:
    return TRAINER_REGISTRY.get(method).node


def learns_by_steps(trainer) -> bool:
    return trainer.by_steps and trainer.max_epoch > 0


class Untracked(contextlib.nullcontext[None]):
    """Stands in for the hooks by which the counter tells modules apart: `torch.autograd.grad` refuses them."""

    parents = frozenset({"Global"})


@contextlib.contextmanager
def operations() -> Iterator[Callable[[], float]]:
    """Counts operations; gives a function of their number so far, in 1e9."""
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = Untracked()
    with counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted
        yield lambda: counter.get_total_flops() / 1e9


def prepared_step(trainer) -> Callable[[], object]:
    """A training step of the trainer, on its first batch."""
    batch = next(iter(trainer.train_loader_x))
    trainer.set_model_mode("train")
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 10**9  # no epoch ends here
    return lambda: trainer.forward_backward(batch)


def prepared_test(trainer, encode: bool = False) -> tuple[Callable[[], object], int]:
    """Prediction of the first test batch, and its images; with `encode` of the classes each time, too."""
    trainer.set_model_mode("eval")
    trainer.before_inference()
    images = trainer.parse_batch_test(next(iter(trainer.test_loader)))[0]
    images = images[:ADAPTED] if trainer.adapts else images

    def predict() -> None:
        if encode:
            trainer.text = None
        with torch.no_grad():
            trainer.model_inference(images)

    return predict, len(images)


def added_gib(step: Callable[[], object]) -> float | None:
    """Peak of what a call adds to the resident memory, in GiB; None where the kernel does not tell (Linux does)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        step()
        return None

    def held(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{key}:"))

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but kept would hide what the step needs
    reset.write_text("5")
    before = held("VmRSS")
    step()
    return (held("VmHWM") - before) / 2**20


def in_turn(rounds: int, *parts: Callable[[], object]) -> list[float]:
    """Fewest processor seconds of each part, one after the other in every round."""
    seconds: list[list[float]] = [[] for _ in parts]
    for _ in range(rounds):
        for part, found in zip(parts, seconds):
            with Clock() as clock:
                part()
            found.append(clock.seconds["cpu"])
    return [min(found) for found in seconds]


def work(arguments: argparse.Namespace) -> dict[str, float | str | None]:
    """Figures of one method in this process; `_coop` are those of CoOp measured in turn with it."""
    torch.set_num_threads(arguments.threads)
    if arguments.plainly:
        compute_plainly()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        trainer = build(arguments, arguments.worker, one)
        kind = "test" if trainer.adapts else "steps" if learns_by_steps(trainer) else "fit"
        figures: dict[str, Any] = {"kind": kind, "parameters": count_num_param(trainer.model.learner)}
        if kind == "steps":
            step = prepared_step(trainer)
            figures |= {"step_gib": added_gib(step), "peak_gib": peak_gib()}
        elif trainer.max_epoch > 0:
            images, (seconds,) = len(trainer.dm.dataset.train_x), in_turn(1, trainer.fit)
            figures |= {"step_s": seconds, "train_images_s": images / seconds}
        coop = None if arguments.plainly else build(arguments, "CoOp", two)
        if kind == "steps":
            with operations() as count:
                step()
            figures["step_gflop"] = count()
            others = [] if coop is None else [prepared_step(coop)]
            for other in others:
                other()  # once, so that nothing is new to it
            figures["step_s"], *figures["step_coop"] = in_turn(arguments.rounds, step, *others)
            figures["train_images_s"] = arguments.batch / figures["step_s"]
        figures["peak_gib"] = figures.get("peak_gib", peak_gib())
        figures |= evaluation(trainer, coop, arguments)
    return figures


def evaluation(trainer, coop, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of a test batch once the classes are encoded, or, in the plain way, of both."""
    text_gflop = None
    if not trainer.model.learner.conditional:
        with operations() as count, torch.no_grad():
            trainer.model.encode_text()
        text_gflop = count()
    test, images = prepared_test(trainer, arguments.plainly)
    with operations() as count:
        test()
    others = [] if coop is None else [prepared_test(coop)]
    for other, _ in others:
        other()
    seconds, *rest = in_turn(arguments.rounds, test, *(other for other, _ in others))
    speeds = [number / each for each, (_, number) in zip(rest, others)]
    found = {"text_gflop": text_gflop, "image_gflop": count() / images, "images_s": images / seconds}
    return {**found, "images_coop": speeds}


def ask_worker(benchmark: str, method: str, options: dict[str, object], *switches: str) -> Any:
    """Measurements of one method, made in a separate process."""
    command = [sys.executable, "-m", "benchmarks", benchmark, "--worker", method, *switches]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"the process of {method} ended with status {child.returncode}:\n{child.stderr[-2000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def measure(method: str, arguments: argparse.Namespace, weights: str | None, plain: bool) -> dict[str, Any]:
    keys = ("backbone", "dataset", "batch", "test_batch", "rounds", "threads", "root")
    options = {key: getattr(arguments, key) for key in keys} | ({"weights": weights} if weights else {})
    return ask_worker("methods", method, options, *(["--plainly"] if plain else []))


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def row(ours: dict[str, Any], coop_gib: float | None, plain: dict[str, Any] | None) -> dict[str, float | None]:
    """Figures of one method, in the order of COLUMNS and, if it was measured the plain way too, PLAIN."""
    found = {name: ours.get(name) for name in COLUMNS}
    found["step / CoOp"] = ratio(ours.get("step_s"), next(iter(ours.get("step_coop", ())), None))
    found["gib / CoOp"] = ratio(ours.get("step_gib"), coop_gib)
    found["CoOp / images_s"] = ratio(next(iter(ours["images_coop"]), None), ours["images_s"])
    if plain is None:
        return found
    pairs = (("step_s", plain, ours), ("images_s", ours, plain), ("peak_gib", plain, ours))
    return found | {name: ratio(a.get(key), b.get(key)) for name, (key, a, b) in zip(PLAIN, pairs)}


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def table(rows: dict[str, dict[str, float | None]], columns: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """Markdown table of the figures of some methods; methods of LANGUAGE_MODEL have a star."""
    head = f"| method | {' | '.join(names or columns)} |"
    lines = [head, "|---|" + "---:|" * len(columns)]
    for method, figures in rows.items():
        star = "\\*" if method in LANGUAGE_MODEL else ""
        lines.append(f"| {method}{star} | {' | '.join(shown(figures[name]) for name in columns)} |")
    return lines


TABLES = {
    "steps": (
        "Methods that learn by steps",
        ("parameters", "step_gflop", "step_s", "step / CoOp", "train_images_s", "step_gib", "gib / CoOp"),
        ("parameters", "step, GFLOP", "step, s", "/ CoOp", "images/s", "memory, GiB", "/ CoOp"),
    ),
    "fit": (
        "Methods that are fitted in one go, or learn nothing",
        ("parameters", "step_s", "train_images_s"),
        ("parameters", "fit, s", "images/s"),
    ),
    "test": ("Methods that adapt to every test image", (), ()),
}
TESTED = ("text_gflop", "image_gflop", "images_s", "CoOp / images_s")
TESTED_NAMES = ("classes, GFLOP", "test image, GFLOP", "test images/s", "time / CoOp")


def page(rows: dict[str, dict[str, float | None]], kinds: dict[str, str], settings: dict[str, Any]) -> str:
    """The tables as a page of the docs, with what they were measured on."""
    where, how = environment(), ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    lines = [
        "# Cost of every method",
        "",
        f"Written by `python -m benchmarks methods --page`: {how}; fp32, {where['processor']}, torch {where['torch']}, "
        f"Python {where['python']}.",
        "",
        *INTRODUCTION.splitlines(),
    ]
    for kind, (title, columns, names) in TABLES.items():
        own = {method: figures for method, figures in rows.items() if kinds[method] == kind}
        if own:
            lines += ["", f"## {title}", "", *table(own, [*columns, *TESTED], [*names, *TESTED_NAMES])]
    lines += ["", "\\* The paper's form reads text that a language model wrote; the figures are without it:", ""]
    lines += [f"- {method}: {what}." for method, what in LANGUAGE_MODEL.items() if method in rows]
    return "\n".join([*lines, ""])


INTRODUCTION = """\
Seconds are processor seconds, the fewest of the rounds. *Step* is one training step, forward, backward and optimizer;
*memory* is the peak of what the first step adds to the process; *classes* is the encoding of all of them, once per
evaluation, for methods whose text does not depend on the image; *test image* is the rest. Operations are those of
matrix products and convolutions, two for a multiplication and an addition. Every ratio to CoOp is of times taken in
turn in one process, so that other work on the machine is in both; CoOp's own ratio shows how exact they are. What a
method computes once, before its first step, is in no figure."""


def run(arguments: argparse.Namespace) -> None:
    if arguments.worker is not None:
        print(json.dumps(work(arguments)))
        return
    chosen = arguments.methods or methods()
    check_names(chosen)
    keys = ("backbone", "dataset", "batch", "test_batch", "rounds", "threads")
    settings = {key: getattr(arguments, key) for key in keys}
    measured: dict[str, dict[str, Any]] = {}
    plain: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = None
        if arguments.backbone == "vit_b16":
            torch.manual_seed(0)
            weights = str(Path(folder) / "vit_b16.safetensors")
            clip.save_model(clip.CLIP(**VIT_B16), weights)
        for method in sorted(chosen, key=lambda name: name != "CoOp"):  # the others' memory is compared with its
            measured[method] = measure(method, arguments, weights, False)
            if arguments.plain:
                plain[method] = measure(method, arguments, weights, True)
            figures = row(measured[method], measured.get("CoOp", {}).get("step_gib"), plain.get(method))
            common = {"settings": {"method": method, **settings}, **environment()}
            for name, value in figures.items():
                print(json.dumps({"benchmark": "methods", "figure": name, "value": value, **common}), flush=True)
            measured[method]["row"] = figures
            if arguments.page:  # after every method, since all of them take long
                done = sorted(measured)
                kinds = {name: measured[name]["kind"] for name in done}
                text = page({name: measured[name]["row"] for name in done}, kinds, settings)
                Path(arguments.page).write_text(text, encoding="utf-8")
    rows = {method: measured[method]["row"] for method in chosen}
    print("\n".join(table(rows, [*COLUMNS, *(PLAIN if arguments.plain else ())])))

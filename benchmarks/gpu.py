"""Every method on a GPU: it starts, trains, evaluates and agrees with the CPU; speed, memory and waits of the host.

Weights are random and of ViT-B/16's shape, pictures those of an embedded data set. A process examines method after
method and is replaced when it ends or takes too long, so that one failure does not stop the rest; what was found is
written after every method, as JSON and as a Markdown page. `--rehearse` runs the same code on the CPU with a narrow
model and fewer steps, where figures of speed, memory and waits mean nothing.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import clip
from dassl.config.files import config_exists
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.files import atomic_write
from trainers.base import CLIPTrainer, cosine_score

from .align_step import VIT_B16
from .methods import CONFIGS, ROOT, config_file, flags, node, shown, trainer_of
from .report import environment

COLUMNS = {
    "logits": "logits, GPU - CPU",
    "gradients": "gradients, GPU - CPU",
    "bf16": "bf16 - fp32",
    "fp16": "fp16 - fp32",
    "steps": "steps",
    "images_s": "images/s",
    "test_images_s": "test images/s",
    "peak_gib": "peak, GiB",
    "transport": "transport",
    "waits": "waits/step",
}
TOLERANCE = 1e-4  # of logits and gradients in fp32, relative to the largest
REHEARSAL = {**VIT_B16, "embed_dim": 32, "image_resolution": 64, "vision_width": 64, "transformer_width": 64}
REHEARSAL |= {"transformer_heads": 1}
PRETRAINING = {"ContrastiveCLIP": ("emoji_vit_s8", "emoji_captions"), "UTA": ("emoji_vit_s8", "emoji_clocks")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="trainers (default: every registered one)")
    parser.add_argument("--output", default="output/gpu_check", help="folder of the results (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="for all methods together (default %(default)s)")
    parser.add_argument("--patience", type=float, default=60, help="seconds for one method (default %(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with smaller sizes")
    parser.add_argument("--root", default=str(ROOT / "data"), help="folder of the data sets (default %(default)s)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--weights", default="", help=argparse.SUPPRESS)


def methods() -> list[str]:
    """Trainers of classes of whole pictures, with a config for embedded data."""
    trainers = {name: TRAINER_REGISTRY.get(name) for name in sorted(TRAINER_REGISTRY.registered_names())}
    names = [name for name, trainer in trainers.items() if issubclass(trainer, CLIPTrainer)]
    return [name for name in names if name in PRETRAINING or config_exists(CONFIGS / name / "emoji.yaml")]


class Examination:
    """Findings about one method, part by part; a part that fails leaves its message in `errors`."""

    def __init__(self, method: str, arguments: argparse.Namespace, folder: str):
        self.method, self.arguments, self.folder = method, arguments, folder
        self.rehearse = arguments.rehearse
        self.device = "cpu" if self.rehearse else "cuda"
        self.steps = 2 if self.rehearse else 20
        self.row: dict[str, Any] = {"method": method, "errors": {}}

    def run(self) -> dict[str, Any]:
        for part in ("agree", "halve", "train"):
            try:
                getattr(self, part)()
            except Exception as err:  # noqa: BLE001 - whatever it is, the next part may work
                self.row["errors"][part] = f"{type(err).__name__}: {err}"[:500]
        return self.row

    def build(self, precision: str, device: str) -> Any:
        """A trainer with the same random numbers every time."""
        name, dataset = PRETRAINING.get(self.method, ("", "emoji_clocks" if self.rehearse else "emoji_animals"))
        batch = 4 if self.rehearse else 32
        options: dict[str, object] = {"DATALOADER.TRAIN_X.BATCH_SIZE": batch, "DATALOADER.TEST.BATCH_SIZE": batch}
        options |= {"DATALOADER.NUM_WORKERS": 0, "DATASET.NUM_SHOTS": 4, "USE_CUDA": device != "cpu"}
        options |= {f"TRAINER.{node(self.method)}.PREC": precision}
        if self.arguments.weights and not name:
            side = (REHEARSAL if self.rehearse else VIT_B16)["image_resolution"]
            options |= {"MODEL.BACKBONE.NAME": self.arguments.weights, "INPUT.SIZE": f"({side}, {side})"}
            if self.method == "PromptKD":
                options["TRAINER.PROMPTKD.TEACHER"] = self.arguments.weights
        if name:
            options |= {"TEST.NO_TEST": True}
        backbone = "vit_b16" if self.arguments.weights else "emoji"
        config = CONFIGS / self.method / f"{name}.yaml" if name else config_file(self.method, backbone)
        torch.manual_seed(1)
        return trainer_of(flags(self.method, config, dataset, self.arguments.root, self.folder, options))

    def agree(self) -> None:
        """Logits and gradients on both devices, in fp32 without TF32."""
        here, there = self.build("fp32", "cpu"), self.build("fp32", self.device)
        self.batch = next(iter(here.train_loader_x))
        expected, found = (signals(trainer, self.batch) for trainer in (here, there))
        for name, value in expected.items():
            self.row[name] = difference(found[name], value)
            if not self.row[name] <= TOLERANCE:
                self.row["errors"][name] = f"{name} differ by {self.row[name]:.2g} of the largest, expected {TOLERANCE}"
        self.full = found

    def halve(self) -> None:
        """Logits, or gradients where there are none, in half precision against fp32."""
        for precision in ("bf16", "fp16"):
            if precision == "fp16" and self.method in PRETRAINING:  # weights that learn stay fp32
                continue
            found = signals(self.build(precision, self.device), self.batch)
            name = next(iter(found))
            self.row[precision] = difference(found[name], self.full[name])

    def train(self) -> None:
        """Steps, evaluation, memory and waits in bf16; in a rehearsal in fp32, which is faster on most processors."""
        trainer = self.build("fp32" if self.rehearse else "bf16", self.device)
        if getattr(trainer, "by_steps", True) and trainer.max_epoch > 0:
            prepare(trainer, "train")
            batch = next(iter(trainer.train_loader_x))
            for _ in range(3):
                trainer.forward_backward(batch)
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with Stopwatch(self.device) as watch:
                for _ in range(self.steps):
                    trainer.forward_backward(batch)
            self.row |= {
                "steps": self.steps,
                "images_s": self.steps * trainer.train_loader_x.batch_size / watch.seconds,
            }
            self.row["waits"] = waits(lambda: trainer.forward_backward(batch), self.device)
            self.row["transport"] = transport_share(trainer, batch, watch.seconds / self.steps, self.device)
        elif trainer.max_epoch > 0:
            trainer.fit()
        if self.device == "cuda":
            self.row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if trainer.cfg.TEST.NO_TEST:
            return
        batch = next(iter(trainer.test_loader))
        with torch.no_grad():
            trainer.before_inference()
        with Stopwatch(self.device) as watch:
            for _ in range(self.steps):
                evaluate(trainer, batch)
        self.row["test_images_s"] = self.steps * len(batch["img"]) / watch.seconds


class Stopwatch:
    """Seconds of a block, the device's work included."""

    def __init__(self, device: str):
        self.wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def __enter__(self) -> Stopwatch:
        self.wait()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()
        self.seconds = time.perf_counter() - self.start


def prepare(trainer: Any, mode: str) -> None:
    trainer.set_model_mode(mode)
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 10**9  # no epoch ends here


def signals(trainer: Any, batch: Any) -> dict[str, Tensor]:
    """Logits and gradients of a batch, each as one vector on the host, as far as the method has them."""
    prepare(trainer, "eval")  # nothing is dropped at random
    found = {}
    if not trainer.cfg.TEST.NO_TEST:
        with torch.no_grad():
            trainer.before_inference()
        found["logits"] = evaluate(trainer, batch).float().flatten().cpu()
    if getattr(trainer, "by_steps", True) and trainer.max_epoch > 0:
        torch.manual_seed(2)  # masks are drawn on the host
        with torch.enable_grad(), trainer.precision.autocast():
            loss = torch.stack(list(trainer.losses(batch).values())).sum()
        learned = [
            p for o in trainer._optims.values() for group in o.param_groups for p in group["params"] if p.requires_grad
        ]
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        found["gradients"] = torch.cat([g.float().flatten().cpu() for g in gradients if g is not None])
    return found


@torch.no_grad()
def evaluate(trainer: Any, batch: Any) -> Tensor:
    """Logits of a batch, of the first view of its images, as in an evaluation; `before_inference` comes first."""
    image = batch["img"][0] if isinstance(batch["img"], list) else batch["img"]
    return trainer.model_inference(image.to(trainer.device, non_blocking=True))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest absolute value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def waits(step: Callable[[], Any], device: str) -> int | None:
    """Number of times the host waits for the GPU in a step, as far as torch reports it."""
    if device != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def transport_share(trainer: Any, batch: Any, seconds: float, device: str) -> float | None:
    """Share of comparing images and classes, forward, in a step of `seconds`; None for cosine similarity."""
    score = getattr(trainer.model, "score", cosine_score)
    if score is cosine_score:
        return None
    spent = []

    def timed(*arguments: Any) -> Tensor:
        with Stopwatch(device) as watch:
            result = score(*arguments)
        spent.append(watch.seconds)
        return result

    trainer.model.score = timed
    try:
        trainer.forward_backward(batch)
    finally:
        trainer.model.score = score
    return sum(spent) / seconds


def work(arguments: argparse.Namespace) -> None:
    """One line of JSON per method."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for method in arguments.worker:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(Examination(method, arguments, folder).run()), flush=True)


def ask(chosen: list[str], arguments: argparse.Namespace, weights: str, keep: Callable[[dict[str, Any]], None]) -> None:
    """Rows of the methods, each handed to `keep` when it is there; a process that fails is replaced."""
    end, left = time.monotonic() + arguments.seconds, list(chosen)
    while left:
        command = [sys.executable, "-m", "benchmarks", "gpu", "--root", arguments.root, "--weights", weights]
        command += ["--rehearse"] * arguments.rehearse + ["--worker", *left]
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=lambda out, to: [*map(to.put, out), to.put("")], args=(child.stdout, lines)).start()
            while left:
                try:
                    line = lines.get(timeout=max(0.0, min(arguments.patience, end - time.monotonic())))
                except queue.Empty:
                    line = ""
                if not line.startswith("{"):
                    break
                keep(json.loads(line))
                left.pop(0)
            child.kill()
            status = child.wait()
            errors.seek(0)
            if left:
                late = time.monotonic() >= end
                reason = "no time was left" if late else f"its process ended ({status}): {errors.read()[-500:].strip()}"
                for method in left if late else left[:1]:
                    keep({"method": method, "errors": {"process": reason}})
                left = [] if late else left[1:]


def page(rows: list[dict[str, Any]], facts: dict[str, Any], rehearsal: bool) -> str:
    """Everything as Markdown."""
    title = "Rehearsal on the CPU: nothing here was measured on a GPU" if rehearsal else "GPU check"
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for row in rows:
        name = row["method"] + (" (failed)" if row["errors"] else "")
        lines.append(f"| {name} | " + " | ".join(shown(row.get(key)) for key in COLUMNS) + " |")
    failures = [f"- {row['method']}, {part}: {text}" for row in rows for part, text in row["errors"].items()]
    return "\n".join([*lines, *(["", "## Failures", "", *failures] if failures else []), ""])


def facts_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and settings."""
    known: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), **environment()}
    if torch.cuda.is_available() and not arguments.rehearse:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        known["gpu"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return known


def run(arguments: argparse.Namespace) -> None:
    if arguments.worker:
        work(arguments)
        return
    known = methods()
    chosen = arguments.methods or known
    if unknown := sorted(set(chosen) - set(known)):
        raise SystemExit(f"error: no method {', '.join(unknown)}; known: {', '.join(known)}")
    if not (arguments.rehearse or torch.cuda.is_available()):
        raise SystemExit("error: torch finds no CUDA device; --rehearse runs the same on the CPU with smaller sizes")
    output, rows = Path(arguments.output), []
    output.mkdir(parents=True, exist_ok=True)
    facts = facts_of(arguments)

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        text, data = page(rows, facts, arguments.rehearse), json.dumps({"facts": facts, "rows": rows}, indent=1)
        atomic_write(output / "gpu.md", lambda file: file.write(text.encode()))
        atomic_write(output / "gpu.json", lambda file: file.write(data.encode()))
        print(f"{row['method']}: " + ("; ".join(row["errors"].values()) or "passes"), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        weights = str(Path(folder) / "random.safetensors")
        clip.save_model(clip.CLIP(**(REHEARSAL if arguments.rehearse else VIT_B16)), weights)
        ask(chosen, arguments, weights, keep)
    if any(row["errors"] for row in rows):
        raise SystemExit(1)

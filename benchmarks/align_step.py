"""One ALIGN training step (forward, loss, backward) against one done the way the released code does it.

The reference encodes all text positions and loops over images and classes, with one Sinkhorn call per pair. Weights
are random and of ViT-B/16's shape, images are noise, class names are ImageNet's. Both run in separate processes, in
turn, so that other work on the machine slows both; times are medians, memory is the process's peak. Seconds are wall
clock, `cpu_s` processor seconds of all threads: the fairer measure when other work shares the cores.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import profile

import clip.text_plan
from clip import CLIP, Encoded, convert_weights
from clip.text_layout import text_layout
from dassl.engine.precision import Precision
from tests.transport.plain_loops import align_loop
from trainers.align import ALIGN, TwoLevelTransport, align_logits
from trainers.base import PromptedCLIP, freeze_all_but
from trainers.parts.memory import MemoryPlan
from trainers.parts.modes import MultiModeLearner

from .report import show

VIT_B16: dict[str, Any] = {
    "embed_dim": 512,
    "image_resolution": 224,
    "vision_layers": 12,
    "vision_width": 768,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}
NAMES = Path(__file__).resolve().parents[1] / "tests" / "golden" / "class_names.json"

PRODUCTS = ["mkldnn::_linear_pointwise", *(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm"))]
PRODUCTS += [f"aten::_scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward")]
REQUESTS = ("step", "images", "texts", "transport", "evaluate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[100], help="numbers of classes, each at most 1000 (default 100)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        nargs="+",
        default=["fp32"],
        help="of ours; several are compared with the same steps of the reference (default fp32)",
    )
    parser.add_argument("--budget", type=float, default=0, help="TRAIN.MEMORY_BUDGET of ours in GiB (default: none)")
    parser.add_argument("--test-batch", type=int, default=20, help="images of a test batch (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images of a step (default %(default)s)")
    parser.add_argument(
        "--modes", type=int, nargs="+", default=[4], help="numbers of visual and textual modes, M = N (default 4)"
    )
    parser.add_argument("--context", type=int, default=2, help="prompt length b (default %(default)s)")
    parser.add_argument("--depth", type=int, default=9, help="layers with prompts (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of ours (default %(default)s)")
    parser.add_argument(
        "--reference-rounds", type=int, default=1, help="measured steps of the reference, 0 = leave it out (default 1)"
    )
    parser.add_argument(
        "--reference-classes",
        type=int,
        nargs="+",
        help="where the reference is measured; two numbers are extended linearly to --classes, which saves memory: its "
        "time is affine in the number of classes; its memory is not extended (default: as --classes)",
    )
    parser.add_argument("--worker", choices=("ours", "reference"), help=argparse.SUPPRESS)


class LoopScore(TwoLevelTransport):
    """The same score by the plain loops; the token level stops as in the released code."""

    def __call__(self, image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
        return align_loop(*self.arguments(image, text, scale))[0]

    def arguments(
        self, image: Encoded, text: Encoded, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        modes = (-1, self.learner.text_modes)
        features = image.pooled, image.tokens[:, 1:], text.pooled, text.tokens
        x, r, y, s = (feature.unflatten(0, modes) for feature in features)
        return x, r, y, s, self.text_mask(text.tokens.shape[1]), scale


class Clock:
    """Wall-clock and processor seconds of a block."""

    def __enter__(self) -> Clock:
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_) -> None:
        wall, cpu = self.start
        self.seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def all_positions(_model: CLIP, ids: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Stands in for `CLIP._cut`: every text position is encoded, as everybody else's forward does."""
    return ids, ids.argmax(-1), [ids.shape[1] - 1] * len(ids)


def compute_plainly() -> None:
    """From now on this process encodes all positions of every sentence, on its own and all at once, by torch alone."""
    CLIP._cut = all_positions  # type: ignore[method-assign, assignment] # in this process
    clip.text_plan.text_layout = lambda ids, ends, prompt_index, *rest: text_layout(ids, ends, None, *rest)


def peak_gib() -> float:
    """Peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Worker:
    """One prompted CLIP and one batch in this process."""

    def __init__(self, arguments: argparse.Namespace):
        torch.manual_seed(0)
        torch.set_num_threads(arguments.threads)
        names = json.loads(NAMES.read_text())["names"]["ImageNet"]
        (classes,) = arguments.classes
        names = [names[k * len(names) // classes] for k in range(classes)]
        model = CLIP(**VIT_B16)
        (modes,) = arguments.modes
        learner = MultiModeLearner(model, names, arguments.context, arguments.depth, modes, modes, "a photo of a")
        self.loop = LoopScore(learner, ALIGN.defaults().ALIGN)
        reference = arguments.worker == "reference"
        score = self.loop if reference else TwoLevelTransport(learner, ALIGN.defaults().ALIGN)
        if reference:
            compute_plainly()
        self.model = PromptedCLIP(model, learner, score)
        self.reference = reference
        (precision,) = arguments.precision
        self.precision = Precision(precision, torch.device("cpu"))
        convert_weights(model, self.precision.dtype)
        freeze_all_but(self.model, [learner])
        if not reference:
            self.model.memory = MemoryPlan(arguments.budget)
        self.image = torch.randn(arguments.batch, 3, 224, 224)
        self.tests = torch.randn(arguments.test_batch, 3, 224, 224)
        self.label = torch.arange(arguments.batch) % classes

    def step(self) -> dict[str, float]:
        """Seconds of one training step."""
        with Clock() as clock:
            with self.precision.autocast():
                loss = cross_entropy(self.model(self.image).logits, self.label)
            loss.backward()
        self.model.zero_grad(set_to_none=True)
        return clock.seconds

    def images(self) -> dict[str, float]:
        """Seconds of the image tower alone, forward and backward."""
        return self.tower(lambda: self.model.encode_image(self.image))

    def texts(self) -> dict[str, float]:
        """Seconds of the text tower alone, forward and backward."""
        return self.tower(self.model.encode_text)

    def tower(self, encode: Callable[[], Encoded]) -> dict[str, float]:
        with Clock() as clock:
            with self.precision.autocast():
                loss = encode().pooled.sum()
            loss.backward()
        self.model.zero_grad(set_to_none=True)
        return clock.seconds

    def products(self) -> dict[str, float]:
        """Share of matrix products and attention in the seconds of a step, by torch's profiler."""
        with profile() as profiler:
            self.step()
        seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
        return {"cpu": sum(seconds.get(key, 0) for key in PRODUCTS) / sum(seconds.values())}

    def evaluate(self) -> dict[str, float]:
        """Seconds of one test batch: ours with the text encoded before, the reference with it, as in the release."""
        with torch.no_grad(), self.precision.autocast():
            text = None if self.reference else self.model.encode_text()
            with Clock() as clock:
                self.model(self.tests, text)
        return clock.seconds

    def features(self) -> tuple[Encoded, Encoded, Tensor]:
        """Image and text features and the scale, as leaves."""
        with torch.no_grad():
            image, text = self.model.encode_image(self.image), self.model.encode_text()
            scale = self.model.clip.logit_scale.exp()
        image, text = (Encoded(*(x.clone().requires_grad_() for x in side)) for side in (image, text))
        return image, text, scale

    def transport(self) -> dict[str, float]:
        """Seconds of both transport levels, forward and backward; as configured, and with all 100 iterations."""
        features = self.features()
        with Clock() as clock:
            cross_entropy(self.model.score(*features), self.label).backward()
        with Clock() as longer:
            result = align_logits(*self.loop.arguments(*features), max_iter=100, threshold=1e-30, fast=True)
            cross_entropy(result.logits, self.label).backward()
        return {**clock.seconds, "wall_100": longer.seconds["wall"], "cpu_100": longer.seconds["cpu"]}

    def check(self) -> dict[str, float]:
        """Largest difference of a cosine between the loops and the batched score, under the same stop rule."""
        features = self.features()
        with torch.no_grad():
            loop = self.loop(*features)
            score = align_logits(
                *self.loop.arguments(*features), threshold=1e-2, stop="scaling_change", fast=True
            ).logits
        return {"difference": float((loop - score).abs().max() / features[2])}

    def peak(self) -> dict[str, float]:
        """Peak resident memory of this process in GiB."""
        return {"gib": peak_gib()}


class Process:
    """A worker in a separate process that answers one request at a time."""

    def __init__(self, arguments: argparse.Namespace, worker: str, classes: int, modes: int, precision: str = "fp32"):
        names = ("batch", "context", "depth", "threads", "budget", "test_batch")
        options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "align_step",
            *options,
            f"--classes={classes}",
            f"--modes={modes}",
            f"--precision={precision}",
            f"--worker={worker}",
        ]
        self.name, self.classes, self.precision = f"{worker} step with {classes} classes", classes, precision
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.requests, self.answers = self.child.stdin, self.child.stdout
        self.found: dict[str, list[dict[str, float]]] = {}

    def ask(self, request: str) -> dict[str, float]:
        try:
            self.requests.write(request + "\n")
            self.requests.flush()
            return json.loads(self.answers.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise RuntimeError(
                f"the process of the {self.name} ended with status {self.child.wait()} on {request!r}. Out of memory? "
                "Use --reference-classes 20 40, or --reference-rounds 0"
            ) from error

    def measure(self, *requests: str) -> None:
        """Asks and keeps the answers."""
        for request in requests:
            self.found.setdefault(request, []).append(self.ask(request))

    def median(self, request: str, key: str) -> float:
        return statistics.median(answer[key] for answer in self.found[request])

    def close(self) -> None:
        self.requests.close()
        self.child.wait()


def serve(arguments: argparse.Namespace) -> None:
    worker = Worker(arguments)
    for line in sys.stdin:
        print(json.dumps(getattr(worker, line.strip())()), flush=True)
        give_back_memory()


def give_back_memory() -> None:
    """Freed memory goes back to the system, where the C library can do that: other workers need it in the meantime."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def extend(points: list[tuple[int, float]], classes: int) -> float:
    """Value at `classes` on the line through the first and the last point; a single point's value."""
    (k, low), (n, high) = points[0], points[-1]
    return low if k == n else low + (high - low) * (classes - k) / (n - k)


def measure(
    arguments: argparse.Namespace, classes: int, modes: int, references: list[Process]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Figures of one number of classes for every precision; the reference is measured again, in turn with ours."""
    ours = [Process(arguments, "ours", classes, modes, precision) for precision in arguments.precision]
    for process in (*ours, *references):
        process.ask("step")  # warms up and does not count
        process.found = {"peak": [process.ask("peak")]}  # of the first step: later ones add gaps between allocations
    for k in range(max(arguments.rounds, arguments.reference_rounds)):
        if k < arguments.rounds:
            for process in ours:
                process.measure(*REQUESTS)
        if k < arguments.reference_rounds:
            for reference in references:
                reference.measure("step", "evaluate")
    for process in ours:
        process.measure("products")
        yield process.precision, figures_of(process, references, arguments)
        process.close()


def figures_of(ours: Process, references: list[Process], arguments: argparse.Namespace) -> dict[str, float]:
    """Medians of one process of ours and their ratios to the reference's."""

    def reference(request: str, key: str) -> float:
        return extend([(x.classes, x.median(request, key)) for x in references], ours.classes)

    step, peak = ours.median("step", "cpu"), ours.median("peak", "gib")
    figures = {"step_s": ours.median("step", "wall"), "step_cpu_s": step, "peak_gib": peak}
    for request in ("images", "texts", "transport"):
        figures[f"{request}_share"] = ours.median(request, "cpu") / step
    figures["products_share"] = ours.found["products"][0]["cpu"]
    figures["transport_share_100_iterations"] = ours.median("transport", "cpu_100") / step
    figures["test_images_cpu_s"] = arguments.test_batch / ours.median("evaluate", "cpu")
    if references:
        figures["reference_s"], figures["reference_cpu_s"] = reference("step", "wall"), reference("step", "cpu")
        figures["times_faster"] = figures["reference_s"] / figures["step_s"]
        figures["times_faster_cpu"] = figures["reference_cpu_s"] / step
        figures["evaluation_times_faster_cpu"] = reference("evaluate", "cpu") / ours.median("evaluate", "cpu")
        for process in references:
            if process.classes == ours.classes:  # peaks do not lie on a line
                figures["reference_peak_gib"] = process.median("peak", "gib")
                figures["share_of_memory"] = peak / figures["reference_peak_gib"]
        difference = references[0].ask("check")["difference"]
        if not difference < 1e-4:
            raise RuntimeError(f"the batched score and the loops differ by {difference} of a cosine")
    return {name: round(value, 3) for name, value in figures.items()}


def run(arguments: argparse.Namespace) -> None:
    if arguments.worker is not None:
        serve(arguments)
        return
    settings = {
        key: getattr(arguments, key) for key in ("batch", "context", "depth", "threads", "budget", "test_batch")
    }
    counts = (arguments.reference_classes or arguments.classes) if arguments.reference_rounds else []
    if counts:
        settings["reference_classes"] = counts
    for modes in arguments.modes:
        references = [Process(arguments, "reference", k, modes) for k in counts]
        for classes in arguments.classes:
            for precision, figures in measure(arguments, classes, modes, references):
                chosen = {"classes": classes, "modes": modes, "precision": precision}
                show("align_step", figures, {**chosen, **settings})
        for process in references:
            process.close()

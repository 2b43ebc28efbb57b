"""One ALIGN training step (forward, loss, backward) against one done the way the released code does it.

The reference encodes all text positions and loops over images and classes, with one Sinkhorn call per pair. Weights
are random and of ViT-B/16's shape, images are noise, class names are ImageNet's. Both run in processes of their own, in
turn, so that other work on the machine slows both; the time is the median, the memory the process's peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip import CLIP, Encoded
from trainers.align import ALIGN, TwoLevelTransport
from trainers.base import PromptedCLIP, freeze_all_but
from trainers.prompts import MultiModeLearner
from trainers.transport import align_scores

from .reference import align_loop
from .report import show

VIT_B16 = {
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
WARM_UP = 1  # steps of ours that are not counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", type=int, default=100, help="number of classes, at most 1000 (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=4, help="images of a step (default %(default)s)")
    parser.add_argument("--modes", type=int, default=4, help="visual and textual modes, M = N (default %(default)s)")
    parser.add_argument("--context", type=int, default=2, help="prompt length b (default %(default)s)")
    parser.add_argument("--depth", type=int, default=9, help="layers with prompts (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of ours (default %(default)s)")
    parser.add_argument(
        "--reference-rounds", type=int, default=1, help="measured steps of the reference, 0 = leave it out (default 1)"
    )
    parser.add_argument("--worker", choices=("ours", "reference"), help=argparse.SUPPRESS)


class LoopScore(TwoLevelTransport):
    """The same score by the plain loops; the token level stops as in the released code."""

    def __call__(self, image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
        return align_loop(*self.arguments(image, text, scale))[0]

    def arguments(self, image: Encoded, text: Encoded, scale: Tensor) -> tuple:
        modes = (-1, self.learner.text_modes)
        features = image.pooled, image.tokens[:, 1:], text.pooled, text.tokens
        return *(x.unflatten(0, modes) for x in features), self.text_mask(text.tokens.shape[1]), scale


class Worker:
    """One prompted CLIP and one batch in this process."""

    def __init__(self, arguments: argparse.Namespace):
        torch.manual_seed(0)
        torch.set_num_threads(arguments.threads)
        names = json.loads(NAMES.read_text())["names"]["ImageNet"]
        names = [names[k * len(names) // arguments.classes] for k in range(arguments.classes)]
        model = CLIP(**VIT_B16)
        learner = MultiModeLearner(
            model, names, arguments.context, arguments.depth, arguments.modes, arguments.modes, "a photo of a"
        )
        self.loop = LoopScore(learner, ALIGN.defaults().ALIGN)
        reference = arguments.worker == "reference"
        score = self.loop if reference else TwoLevelTransport(learner, ALIGN.defaults().ALIGN)
        if reference:
            model._cut = lambda ids: (ids, ids.argmax(-1))  # all positions, as everybody else's forward
        self.model = PromptedCLIP(model, learner, score)
        freeze_all_but(self.model, [learner])
        self.image = torch.randn(arguments.batch, 3, 224, 224)
        self.label = torch.arange(arguments.batch) % arguments.classes

    def step(self) -> dict[str, float]:
        """Seconds and loss of one training step."""
        start = time.perf_counter()
        output = self.model(self.image)
        loss = cross_entropy(output.logits, self.label)
        loss.backward()
        seconds = time.perf_counter() - start
        self.model.zero_grad(set_to_none=True)
        return {"seconds": seconds, "loss": loss.item()}

    def transport(self) -> dict[str, float]:
        """Seconds of both transport levels, forward and backward; as configured, and with all 100 iterations."""
        with torch.no_grad():
            image, text = self.model.encode_image(self.image), self.model.encode_text()
        scale = self.model.clip.logit_scale.exp()
        leaves = [Encoded(*(x.clone().requires_grad_() for x in side)) for side in (image, text)]
        seconds = {}
        for name, options in (("seconds", {}), ("seconds_100", {"max_iter": 100, "threshold": 1e-30})):
            start = time.perf_counter()
            if options:
                scores = align_scores(*self.loop.arguments(*leaves, scale), **options).scores
            else:
                scores = self.model.score(*leaves, scale)
            cross_entropy(scores, self.label).backward()
            seconds[name] = time.perf_counter() - start
        return seconds

    def peak(self) -> dict[str, float]:
        """Peak resident memory of this process in GiB."""
        return {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


class Process:
    """A worker in a process of its own that answers one request at a time."""

    def __init__(self, kind: str):
        command = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--worker", kind]
        self.kind = kind
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, request: str) -> dict[str, float]:
        self.child.stdin.write(request + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"the process of the {self.kind} step ended with status {self.child.wait()} on {request!r}: "
                "out of memory? Use fewer --classes, or --reference-rounds 0"
            )
        return json.loads(answer)

    def close(self) -> None:
        self.child.stdin.close()
        self.child.wait()


def serve(arguments: argparse.Namespace) -> None:
    worker = Worker(arguments)
    for line in sys.stdin:
        print(json.dumps(getattr(worker, line.strip())()), flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    ours, transports, reference = [], [], []
    rounds = max(arguments.rounds, arguments.reference_rounds)
    first, second = Process("ours"), None
    if arguments.reference_rounds:
        second = Process("reference")
    for _ in range(WARM_UP):
        first.ask("step")
    peak = first.ask("peak")["gib"]  # of steps alone
    for k in range(rounds):
        if k < arguments.rounds:
            ours.append(first.ask("step"))
            peak = first.ask("peak")["gib"] if k == 0 else peak
            transports.append(first.ask("transport"))
        if second is not None and k < arguments.reference_rounds:
            reference.append(second.ask("step"))
    seconds = statistics.median(x["seconds"] for x in ours)
    figures = {"step_s": seconds, "peak_gib": peak}
    for name, key in (("transport_s", "seconds"), ("transport_100_iterations_s", "seconds_100")):
        figures[name] = statistics.median(x[key] for x in transports)
    figures["transport_share"] = figures["transport_s"] / seconds
    if second is not None:
        gap = abs(reference[0]["loss"] - ours[0]["loss"]) / reference[0]["loss"]
        if not gap < 0.02:  # the two stop rules differ by less
            raise RuntimeError(f"the losses of both steps differ: {ours[0]['loss']} and {reference[0]['loss']}")
        figures["reference_step_s"] = statistics.median(x["seconds"] for x in reference)
        figures["reference_peak_gib"] = second.ask("peak")["gib"]
        figures["times_faster"] = figures["reference_step_s"] / seconds
        figures["share_of_memory"] = peak / figures["reference_peak_gib"]
        second.close()
    first.close()
    return {name: round(value, 3) for name, value in figures.items()}


def run(arguments: argparse.Namespace) -> None:
    if arguments.worker is not None:
        serve(arguments)
        return
    settings = {key: getattr(arguments, key) for key in ("classes", "batch", "modes", "context", "depth", "threads")}
    show("align_step", measure(arguments), settings)

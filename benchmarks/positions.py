"""Text positions that are computed for a class list: all, cut, in groups of similar length, and with shared beginnings.

Counts alone, nothing is timed: they depend on the names and the prompts, not on the machine.
"""

from __future__ import annotations

import argparse
import json

import torch

from clip import CLIP
from clip.text_layout import GROUP_COST, text_layout
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import Learner, TemplateText, TextContext

from .align_step import NAMES, VIT_B16
from .report import show

LISTS = ("ImageNet", "Caltech101", "OxfordPets", "SUN397", "FGVCAircraft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lists", nargs="+", default=LISTS, metavar="NAME", help="class lists (default: five)")
    parser.add_argument("--plot", metavar="FILE", help="also draw the counts for 10 to 1000 ImageNet classes (PNG)")


def learners(model: CLIP, names: list[str]) -> dict[str, Learner]:
    """Sentences of methods at their defaults."""
    return {
        "ALIGN, 4 x 2 vectors": MultiModeLearner(model, names, 2, 1, 4, 4, "a photo of a"),
        "CoOp, 16 vectors": TextContext(model, names, 16),
        "a photo of a NAME.": TemplateText(model, names, "a photo of a {}."),
    }


def count(learner: Learner) -> dict[str, float]:
    """Positions in each way, and the share of the cut ones that is left."""
    ids, prompts = learner.text_prompts()
    ends = ids.argmax(-1).tolist()
    slots = prompt_index = None
    if prompts is not None:
        slots, prompt_index = prompts.slots, prompts.prompt_index
    prompt_index = torch.zeros(len(ids), dtype=torch.int64) if prompt_index is None else prompt_index
    groups = text_layout(ids, ends, None, slots, None, GROUP_COST[True])
    shared = text_layout(ids, ends, prompt_index, slots, None, GROUP_COST[True])
    cut = len(ids) * (max(ends) + 1)
    figures = {"all": ids.numel(), "cut": cut, "grouped": groups.positions, "shared": shared.positions}
    return {**figures, "shared / cut": round(shared.positions / cut, 3)}


def plot(model: CLIP, names: list[str], file: str) -> None:
    """One panel per method: positions of each way against the number of classes, both axes logarithmic."""
    from matplotlib.figure import Figure

    numbers = (10, 20, 50, 100, 200, 400, 700, 1000)
    found = [learners(model, [names[k * len(names) // c] for k in range(c)]) for c in numbers]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    labels = {
        "all": "all 77",
        "cut": "cut at the longest",
        "grouped": "groups of a length",
        "shared": "shared beginnings",
    }
    for panel, method in zip(panels, found[0]):
        counts = [count(one[method]) for one in found]
        for key, label in labels.items():
            panel.loglog(numbers, [figures[key] for figures in counts], marker="o", markersize=3, label=label)
        panel.set(title=method, xlabel="classes")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("text positions of a step")
    panels[1].legend(loc="upper left", fontsize=8)
    figure.savefig(file, dpi=120)


def run(arguments: argparse.Namespace) -> None:
    known = json.loads(NAMES.read_text())["names"]
    unknown = sorted(set(arguments.lists) - set(known))
    if unknown:
        raise SystemExit(f"error: no class list {', '.join(unknown)}; known: {', '.join(known)}")
    model = CLIP(**{**VIT_B16, "vision_layers": 1, "transformer_layers": 1})
    if arguments.plot:
        plot(model, known["ImageNet"], arguments.plot)
    for name in arguments.lists:
        for prompt, learner in learners(model, known[name]).items():
            show("positions", count(learner), {"classes": f"{name} ({len(known[name])})", "sentence": prompt})

"""Transport plans of one picture and one class from epoch to epoch, by the checkpoints that a run kept."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from align_prompt.explain import drawing
from align_prompt.explain.mistakes import spread_sample
from align_prompt.explain.page import Section
from align_prompt.explain.plans import SetPlan, TokenPlans, plans_of, token_names
from align_prompt.explain.sections import RATIO, patches_of, place_of, seen_picture
from align_prompt.model import Model
from dassl.engine.checkpoints import read_checkpoint

MOST_EPOCHS = 8
STEM = "model.pth.tar-"
DISTANCE = (
    "Share of the mass that is elsewhere than in the uniform plan, of each pair of prompts and between the prompts."
)


def kept_epochs(model: Model) -> list[int]:
    """Epochs whose checkpoints lie beside those of the model, rising, at most MOST_EPOCHS, evenly spread.

    Raises:
        ValueError: there are fewer than two.
    """
    folders = [path.parent for path, _ in model.source.checkpoints.values()]
    known = [{int(path.name[len(STEM) :]) for path in folder.glob(f"{STEM}*[0-9]")} for folder in folders]
    epochs = sorted(set.intersection(*known)) if known else []
    if len(epochs) < 2:
        raise ValueError(
            f"{model.source.origin} keeps the checkpoints of {len(epochs)} epochs, expected at least 2 to see a "
            "change: train with TRAIN.CHECKPOINT_FREQ 1"
        )
    return [epochs[place] for place in spread_sample(len(epochs), MOST_EPOCHS)]


@torch.no_grad()
def plans_by_epoch(model: Model, image: Tensor, place: int) -> dict[int, TokenPlans | SetPlan]:
    """Plans of a preprocessed image (1, 3, H, W) and class number `place` at each of `kept_epochs`.

    The model has its own weights again afterwards.
    """
    epochs, trainer, own = kept_epochs(model), model.trainer, model.source.checkpoints
    found = {}
    try:
        for epoch in epochs:
            paths: dict[str, Path] = {name: path.with_name(f"{STEM}{epoch}") for name, (path, _) in own.items()}
            trainer.load_checkpoints({name: (path, read_checkpoint(path)) for name, path in paths.items()})
            trainer.before_inference()
            with trainer.test_precision.autocast():
                encoded = model.prompted.encode_image(image)
                found[epoch] = plans_of(model, encoded, trainer.text, place)
    finally:
        trainer.load_checkpoints(own)
        trainer.before_inference()
    return found


def from_uniform(plan: Tensor, mask: Tensor | None = None) -> float:
    """Total variation in [0, 1] between a plan (rows, columns) and the uniform one over the columns of `mask`.

    It is the share of the mass that is elsewhere than in the uniform plan.
    """
    plan = plan if mask is None else plan[:, mask]
    return float((plan - 1 / plan.numel()).abs().sum() / 2)


def epochs_section(model: Model, number: int, path: str, name: str | None) -> Section:
    """Plans of one picture from epoch to epoch; arguments as of `sections.picture_section`.

    Raises:
        ValueError: the method has no transport, or the run kept no checkpoints of several epochs.
    """
    image = next(iter(model.image_batches([path]))).to(model.device)
    place = place_of(model, model.predict([path])[0].label if name is None else name)
    found = plans_by_epoch(model, image, place)
    section = Section(f"{Path(path).name}: {model.classnames[place]}, from epoch to epoch")
    prefix, picture = f"picture{number}_epoch", seen_picture(model, image[0])
    section.numbers[f"{prefix}s"] = list(found)
    if isinstance(next(iter(found.values())), SetPlan):
        _set_plans(section, cast("dict[int, SetPlan]", found), picture, prefix)
    else:
        size = patches_of(model, image)
        _token_plans(section, cast("dict[int, TokenPlans]", found), picture, prefix, token_names(model, place), size)
    return section


def _set_plans(section: Section, found: dict[int, SetPlan], picture: np.ndarray, prefix: str) -> None:
    titles, plans = [f"epoch {epoch}" for epoch in found], list(found.values())
    section.numbers[f"{prefix}_plans"] = np.stack([plan.plan.numpy() for plan in plans])
    ratio = torch.stack([plan.relative() for plan in plans])  # (epochs, rows, N)
    if plans[0].local:
        side, names = round(ratio.shape[1] ** 0.5), [f"prompt {n + 1}" for n in range(ratio.shape[2])]
        limit = drawing.ratio_limit(ratio.numpy())
        figure = drawing.token_plans(picture, ratio.unflatten(1, (side, side)).numpy(), names, titles, limit)
    else:
        figure = drawing.prompt_plans(ratio.numpy(), titles)
    section.show(f"{prefix}s_plan", f"Transport plan. {RATIO}", figure)
    lines = [("plan", [from_uniform(plan.plan) for plan in plans], drawing.RED)]
    section.show(f"{prefix}s_distance", DISTANCE, drawing.distances_by_epoch(list(found), lines))


def _token_plans(
    section: Section, found: dict[int, TokenPlans], picture: np.ndarray, prefix: str, names: list[list[str]], size: int
) -> None:
    titles, plans = [f"epoch {epoch}" for epoch in found], list(found.values())
    tokens, prompts = (torch.stack(values) for values in zip(*((plan.tokens, plan.prompts) for plan in plans)))
    section.numbers |= {f"{prefix}_token_plans": tokens.numpy(), f"{prefix}_prompt_plans": prompts.numpy()}
    mask, pairs = plans[0].mask, [(m, n) for m in range(prompts.shape[1]) for n in range(prompts.shape[2])]
    figure = drawing.prompt_plans((prompts * len(pairs)).numpy(), titles)
    section.show(f"{prefix}s_prompts", f"Plan between the prompts. {RATIO}", figure)
    lines = [
        (
            "between tokens, of each pair of prompts",
            [from_uniform(plan[m, n], mask[n]) for plan in tokens],
            drawing.BLUE,
        )
        for m, n in pairs
    ]
    lines.append(("between prompts", [from_uniform(plan) for plan in prompts], drawing.RED))
    section.show(f"{prefix}s_distance", DISTANCE, drawing.distances_by_epoch(list(found), lines))
    ratio, side = torch.stack([plan.relative() for plan in plans])[:, :, :, :size], round(size**0.5)
    limit = drawing.ratio_limit(ratio.numpy())
    for m, n in pairs:
        part = ratio[:, m, n][..., mask[n]].unflatten(1, (side, side))  # (epochs, side, side, L)
        words = [name for name, part_of in zip(names[n], mask[n].tolist()) if part_of]
        caption = f"Visual prompt {m + 1}, textual prompt {n + 1}: tokens (rows) by epoch (columns). {RATIO}"
        figure = drawing.token_plans(picture, part.numpy(), words, titles, limit)
        section.show(f"{prefix}s_tokens{m + 1}_{n + 1}", caption, figure)

"""Sections of the page: what is computed for a picture, for the words and for a test set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from align_prompt.explain import drawing
from align_prompt.explain.attention import method_maps, plain_maps
from align_prompt.explain.mistakes import (
    PROJECTIONS,
    confusion,
    features_before_and_after,
    in_two_dimensions,
    outcome,
    own_test_set,
    spread_sample,
    worst,
)
from align_prompt.explain.page import Section
from align_prompt.explain.plans import SetPlan, TokenPlans, plans_of, token_names
from align_prompt.explain.words import label_tokens_in_two_dimensions, nearest_words
from align_prompt.model import Model
from clip.resnet import ModifiedResNet
from dassl.evaluation.calibration import reliability

RATIO = "Red: more than the uniform plan, which prefers nothing; blue: less; 1 = the same."
SCALES = "Each map has its own scale, so that their places can be compared and their strengths cannot."
MAPS = (
    "Rollout: how much of each patch reaches the class token through the attention of all blocks. Gradient: the "
    f"patches whose tokens, as the last block reads them, raise the logit of the class. {SCALES}"
)
RESNET_MAPS = (
    "Attention: weights of the places of the last map in the pooling layer, mean over its heads. Gradient: the places "
    f"whose channels raise the logit of the class. {SCALES}"
)
WORDS = (
    "Entries of the vocabulary nearest to each learned vector, by Euclidean distance. Near is relative: compare the "
    "distance with the vector's norm. A nearest word need not say what a vector does, which acts together with its "
    "neighbors through all blocks."
)


def seen_picture(model: Model, image: Tensor) -> np.ndarray:
    """(H, W, 3) in [0, 1], what the model sees of a preprocessed image (3, H, W)."""
    cfg = model.trainer.cfg.INPUT
    mean, std = (torch.tensor(value)[:, None, None] for value in (cfg.PIXEL_MEAN, cfg.PIXEL_STD))
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def has_plans(model: Model) -> bool:
    """Does the score of the method have transport plans?"""
    return hasattr(model.trainer, "transport")


def picture_section(model: Model, number: int, path: str, name: str | None) -> Section:
    """Plans and maps of one picture.

    Args:
        number: of the picture, from 1; part of the names of the files.
        name: of the class; None = the predicted one.

    Raises:
        ValueError: the picture cannot be read, or an unknown class.
    """
    image = next(iter(model.image_batches([path]))).to(model.device)
    best = model.predict([path], top=5)[0]
    place = place_of(model, best.label if name is None else name)
    section = Section(f"{Path(path).name}: {model.classnames[place]}")
    shown = ", ".join(f"{label} {100 * value:.1f} %" for label, value in best.top)
    section.text.append(f"Predicted: {shown}. Explained is the class {model.classnames[place]!r}.")
    picture, prefix = seen_picture(model, image[0]), f"picture{number}"
    section.numbers[f"{prefix}_seen"] = picture
    if has_plans(model):
        _plans(section, model, image, place, picture, prefix)
    else:
        section.text.append(f"{model.method} has no transport plans; ALIGN, ALIGNLAMM, PLOT and PLOTPP have.")
    if family := getattr(model.prompted.clip, "family", None):
        section.text.append(f"Attention maps need CLIP's own towers, and this backbone is {family}.")
        return section
    plain, own = plain_maps(model, image, place), method_maps(model, image, place)
    for who, maps in (("plain", plain), ("method", own)):
        section.numbers |= {f"{prefix}_{who}_{kind}": values.numpy() for kind, values in maps._asdict().items()}
    resnet = isinstance(model.prompted.clip.visual, ModifiedResNet)
    figure = drawing.attention_maps(picture, plain, own, model.method, "attention" if resnet else "rollout")
    section.show(f"{prefix}_attention", RESNET_MAPS if resnet else MAPS, figure)
    return section


def patches_of(model: Model, image: Tensor) -> int:
    """Patches of a preprocessed image."""
    return (image.shape[-1] // cast(int, model.prompted.clip.visual.patch_size)) ** 2


def place_of(model: Model, name: str) -> int:
    """Number of a class.

    Raises:
        ValueError: there is no such class.
    """
    names = model.classnames
    if name not in names:
        shown = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        raise ValueError(f"{name!r} is none of the {len(names)} classes of the model: {shown}")
    return names.index(name)


@torch.no_grad()
def _plans(section: Section, model: Model, image: Tensor, place: int, picture: np.ndarray, prefix: str) -> None:
    model.encode_classes()
    with model.trainer.test_precision.autocast():
        encoded = model.prompted.encode_image(image)
        found = plans_of(model, encoded, model.trainer.text, place)
    if isinstance(found, SetPlan):
        _set_plan(section, found, picture, prefix)
    else:
        _token_plans(section, model, found, place, picture, prefix, patches_of(model, image))


def _set_plan(section: Section, found: SetPlan, picture: np.ndarray, prefix: str) -> None:
    section.numbers[f"{prefix}_plan"] = found.plan.numpy()
    ratio = found.relative()
    if found.local:
        side = round(len(ratio) ** 0.5)
        figure = drawing.set_plan(picture, ratio.T.unflatten(1, (side, side)).numpy())
        section.show(f"{prefix}_plan", f"Transport plan of every prompt of the class. {RATIO}", figure)
    else:
        figure = drawing.matrix_plan(ratio.numpy())
        section.show(f"{prefix}_plan", f"Transport plan between visual and textual prompts. {RATIO}", figure)


def _token_plans(
    section: Section, model: Model, found: TokenPlans, place: int, picture: np.ndarray, prefix: str, patches: int
) -> None:
    ratio, names = found.relative(), token_names(model, place)
    section.numbers |= {f"{prefix}_token_plans": found.tokens.numpy(), f"{prefix}_token_mask": found.mask.numpy()}
    section.numbers |= {f"{prefix}_prompt_plan": found.prompts.numpy(), f"{prefix}_logit": found.logit}
    prompts = float(found.tokens[:, :, patches:].sum(dim=(2, 3)).mean())
    uniform = 1 - patches / found.tokens.shape[2]
    section.text.append(
        f"Plans between tokens: patches hold {100 * (1 - prompts):.1f} % of the mass, the vectors of the visual "
        f"prompts, which have no place in the picture, {100 * prompts:.1f} % (uniform: {100 * uniform:.1f} %)."
    )
    limit = drawing.ratio_limit(ratio[:, :, :patches].numpy())
    side, titles = round(patches**0.5), [f"visual prompt {m + 1}" for m in range(len(ratio))]
    for n in range(ratio.shape[1]):
        part = ratio[:, n, :patches][..., found.mask[n]].unflatten(1, (side, side))  # (M, side, side, L)
        words = [name for name, part_of in zip(names[n], found.mask[n].tolist()) if part_of]
        caption = f"Textual prompt {n + 1}: its tokens (rows) against the patches of each visual prompt. {RATIO}"
        section.show(
            f"{prefix}_tokens{n + 1}", caption, drawing.token_plans(picture, part.numpy(), words, titles, limit)
        )
    matrix = (found.prompts * found.prompts.numel()).numpy()
    section.show(f"{prefix}_prompts", f"Plan between the prompts. {RATIO}", drawing.matrix_plan(matrix))


def words_section(model: Model, place: int) -> Section | None:
    """Nearest words of the learned vectors, and where label tokens moved; None if no such vectors were learned."""
    rows = nearest_words(model, place)
    if not rows:
        return None
    section = Section("Words nearest to what was learned", [WORDS])
    count = len(rows[0].words)
    section.table = [("vector", "norm", *(f"nearest {k}" for k in range(1, count + 1)))]
    for row in rows:
        words = [f"{word.strip()!r} {distance:.3f}" for word, distance in row.words]
        section.table.append((row.name, f"{row.norm:.3f}", *words))
    section.numbers["words_distance"] = [[distance for _, distance in row.words] for row in rows]
    section.numbers["words_word"] = [[word for word, _ in row.words] for row in rows]
    section.numbers["words_vector"] = [row.name for row in rows]
    moved = label_tokens_in_two_dimensions(model)
    if moved is not None:
        before, after, names = moved
        section.numbers |= {"labels_before": before, "labels_after": after}
        caption = "Label tokens before and after, on the two principal components of all of them together."
        section.show("labels", caption, drawing.moved_labels(before, after, names))
    return section


def data_section(model: Model, root: str, projections: Sequence[str] = ("tsne",)) -> Section:
    """Confusion, calibration, worst mistakes and projections of the run's test set below `root`."""
    data = own_test_set(model, root)
    found, names = outcome(model, data), model.classnames
    section = Section(f"Test set: {len(data.paths)} pictures")
    section.text.append(
        f"Accuracy {100 * found.accuracy:.1f} %, expected calibration error {100 * found.calibration_error:.1f} %."
    )
    counts, bins = confusion(found.labels, found.predicted, len(names)), reliability(found.probability, found.correct)
    places = worst(found)
    section.numbers |= {"test_confusion": counts.numpy(), "test_worst": np.array([data.paths[k] for k in places])}
    section.numbers |= {f"test_{name}": getattr(found, name).numpy() for name in ("labels", "predicted", "probability")}
    section.numbers |= {f"reliability_{name}": value.numpy() for name, value in bins._asdict().items()}
    wrong = counts.clone().fill_diagonal_(0)
    order = [k for k in wrong.flatten().argsort(descending=True, stable=True)[:20].tolist() if wrong.flatten()[k]]
    section.table = [("true class", "predicted class", "pictures")]
    section.table += [(names[k // len(names)], names[k % len(names)], str(int(wrong.flatten()[k]))) for k in order]
    section.show(
        "confusion",
        "Confusion matrix; the table has its largest mistakes.",
        drawing.confusion_matrix(counts.numpy(), names),
    )
    diagram = drawing.reliability_diagram(bins, found.calibration_error)
    section.show("reliability", "Accuracy where the model says a probability, in 15 bins.", diagram)
    if places:
        caption = f"The {len(places)} wrong predictions with the highest probability."
        section.show("mistakes", caption, drawing.worst_mistakes(found, places, names))
    some = spread_sample(len(data.paths))
    if len(some) >= 4:
        features = features_before_and_after(model, [data.paths[k] for k in some])
        labels = data.labels[some].numpy()
        for name in projections:
            before, after = (in_two_dimensions(part, name) for part in features)
            section.numbers |= {f"{name}_before": before, f"{name}_after": after, f"{name}_labels": labels}
            caption = (
                f"{PROJECTIONS[name]} of image features by plain CLIP and by the method (mean over its visual "
                "prompts). Distances between groups, and their sizes, mean nothing. Classes beyond the 20th are gray "
                "crosses."
            )
            section.show(name, caption, drawing.scatter(before, after, labels, names))
    return section

"""Parameter groups: which parameters decay, and learning rates that fall from the top of a tower to its input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from clip import CLIP

AFTER_BLOCKS = {"ln_post", "proj", "norm", "head", "ln_final", "text_projection", "logit_scale"}


def decays(parameter: nn.Parameter) -> bool:
    """True if weight decay applies: to matrices, not to vectors and scalars (biases, norms, class token, scale)."""
    return sum(size > 1 for size in parameter.shape) > 1


def decay_groups(model: nn.Module, weight_decay: float, without: Iterable[nn.Parameter] = ()) -> list[dict]:
    """Two parameter groups of everything that learns: what decays, then what does not.

    Args:
        model: what learns is a part of it.
        weight_decay: of matrices.
        without: matrices that do not decay either, such as positions.
    """
    free = {id(p) for p in without}
    learned = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in learned if (decays(p) and id(p) not in free) is kind] for kind in (True, False))
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def blocks_path(tower: nn.Module) -> str:
    """Name of a tower's list of blocks; ValueError if it has none (a ResNet)."""
    known = dict(tower.named_modules())
    for path in ("blocks", "transformer.resblocks"):
        if path in known:
            return path
    raise ValueError(f"a {type(tower).__name__} has no blocks, so its learning rate cannot decay by layer")


def heights(tower: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, height) of every parameter of a tower: how far it is below the top.

    The height is 0 for what comes after the last block (final norm, projection, temperature), 1 for the last block, and
    the number of blocks + 1 for what comes before the first: patches, class token, token embedding, positions.
    """
    path = blocks_path(tower)
    count = len(list(tower.get_submodule(path).children()))
    for name, _ in tower.named_parameters():
        if name.startswith(f"{path}."):
            yield name, count - int(name.removeprefix(f"{path}.").split(".")[0])
        else:
            yield name, 0 if name.split(".")[0] in AFTER_BLOCKS else count + 1


def layer_decay_groups(
    model: CLIP, lr: float, weight_decay: float, image_decay: float = 1.0, text_decay: float = 1.0
) -> list[dict]:
    """Parameter groups with the learning rate lr * decay ** height (see `heights`) and with or without weight decay.

    Args:
        model: the CLIP; what does not learn is left out.
        lr: rate at the top of both towers.
        weight_decay: of matrices.
        image_decay: factor from layer to layer of the image tower; 1 for the same rate everywhere.
        text_decay: the same for the text tower.

    Raises:
        ValueError: a tower without blocks has to decay.
    """
    share = dict.fromkeys(model.parameters(), 1.0)
    if text_decay != 1:
        text = {name: p for name, p in model.named_parameters() if not name.startswith("visual.")}
        share |= {text[name]: text_decay**height for name, height in heights(model) if name in text}
    if image_decay != 1:
        image = dict(model.visual.named_parameters())
        share |= {image[name]: image_decay**height for name, height in heights(model.visual)}
    return shared_groups(model, share, lr, weight_decay)


def shared_groups(
    model: nn.Module,
    share: Mapping[nn.Parameter, float],
    lr: float,
    weight_decay: float,
    without: Iterable[nn.Parameter] = (),
) -> list[dict]:
    """Parameter groups of what learns, by learning rate and by whether it decays, highest rates first.

    Args:
        share: factor on lr by parameter; 1 for those that are missing.
        weight_decay: of matrices.
        without: matrices that do not decay either, such as positions.
    """
    free = {id(p) for p in without}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = decays(parameter) and id(parameter) not in free
            groups.setdefault((share.get(parameter, 1.0), matrix), []).append(parameter)
    return [
        {"params": members, "lr": lr * rate, "weight_decay": weight_decay if matrix else 0.0}
        for (rate, matrix), members in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]

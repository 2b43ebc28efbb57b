"""Maps of one picture: attention, and the gradient of a logit, of a vision transformer or a ResNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clip
from align_prompt.model import Model
from clip import CLIP, Encoded
from clip.adapters import inner, without_adapters
from clip.resnet import ModifiedResNet
from trainers.parts.losses import cosine_logits
from trainers.parts.prompted_clip import template_features


class Maps(NamedTuple):
    """Maps of one picture, for each visual mode: attention and gradient, both (M, side, side), 0 or more.

    The attention of a vision transformer is the rollout over its blocks, that of a ResNet of its pooling layer.
    """

    attention: Tensor
    gradient: Tensor


def rollout(attention: Sequence[Tensor]) -> Tensor:
    """Attention rollout, from the first block to the last (Abnar & Zuidema, 2020, Section 3).

    Args:
        attention: softmax weights (rows, heads, L, L) of every block; L may grow by tokens that are appended later.

    Returns:
        (rows, L, L): how much of each input token (last axis) is in each token at the end; rows sum to 1. Every block
        is the mean of its heads, halved with the identity for the residual connection.
    """
    joint = None
    for weights in attention:
        mean = weights.float().mean(dim=1)  # (rows, L, L)
        mixed = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        if joint is not None and (more := mixed.shape[-1] - joint.shape[-1]):  # they are what they began as
            joint = F.pad(joint, (0, more, 0, more))
            joint[:, -more:, -more:] = torch.eye(more, device=mean.device)
        joint = mixed if joint is None else mixed @ joint
    if joint is None:
        raise ValueError("rollout needs the attention of at least one block")
    return joint


def gradient_map(tokens: Tensor, gradient: Tensor) -> Tensor:
    """Positive part of gradient times value, summed over d, of tokens (rows, L, d): (rows, L).

    HiResCAM (Draelos & Carin, 2020): Grad-CAM without its mean of the gradient over the places.
    """
    return (tokens * gradient).float().sum(dim=-1).clamp(min=0)


def on_grid(values: Tensor, patches: int) -> Tensor:
    """(rows, side, side) of the patches of (rows, L): behind the class token, before visual prompts."""
    side = round(patches**0.5)
    return values[:, 1 : 1 + patches].unflatten(1, (side, side))


def maps_of(
    model: CLIP, image: Tensor, encode: Callable[[Tensor], Encoded], logit: Callable[[Encoded], Tensor]
) -> Maps:
    """Attention, and gradient of a logit with respect to the normalised input of the last block, or the last map.

    Not to the block's input itself: the normalisation does not see its length, so gradient times value would be 0
    everywhere.

    Args:
        image: (1, 3, H, W).
        encode: from embedded patches (1, 1 + P, d) to features.
        logit: of the class in question, a scalar.

    Raises:
        ValueError: towers of another library.
    """
    if family := getattr(model, "family", None):
        raise ValueError(f"attention maps need CLIP's own towers; this backbone is {family}")
    if isinstance(model.visual, ModifiedResNet):
        return _resnet_maps(model.visual, image, encode, logit)
    blocks = model.visual.blocks
    kept: list[Tensor] = []
    end = inner(blocks[-1])
    last = getattr(end, "ln_1", None) or end.get_submodule("norm1")
    hook = last.register_forward_hook(lambda _, __, out: kept.append(out))
    try:
        with torch.enable_grad(), clip.record(model, "vision", attention=range(len(blocks))) as seen:
            tokens = model.visual.embed(image).detach().requires_grad_()
            value = logit(encode(tokens))
            (gradient,) = torch.autograd.grad(value, kept[0])
    finally:
        hook.remove()
    patches = tokens.shape[1] - 1
    joint = rollout([seen.attention[number].detach() for number in range(len(blocks))])
    rows = gradient_map(kept[0].detach(), gradient)
    return Maps(on_grid(joint[:, 0], patches).cpu(), on_grid(rows, patches).cpu())


def _resnet_maps(
    tower: ModifiedResNet, image: Tensor, encode: Callable[[Tensor], Encoded], logit: Callable[[Encoded], Tensor]
) -> Maps:
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())  # (1, d, side, side)
        return kept[0]

    hook = tower.layer4.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            tokens = tower.embed(image)
            (gradient,) = torch.autograd.grad(logit(encode(tokens)), kept[0])
    finally:
        hook.remove()
    last, slope = (value.detach().flatten(2).transpose(1, 2) for value in (kept[0], gradient))  # (1, P, d)
    with torch.no_grad():
        weights = tower.attnpool.maps(tokens).float().mean(dim=1)[:, 0]  # of the pooled position, (1, 1 + P)
    side = kept[0].shape[-1]
    return Maps(on_grid(weights, side**2).cpu(), gradient_map(last, slope).unflatten(1, (side, side)).cpu())


def method_maps(model: Model, image: Tensor, place: int) -> Maps:
    """Maps of the method for class number `place`; one for each of its visual modes."""
    prompted, trainer = model.prompted, model.trainer
    model.encode_classes()
    text = None if prompted.learner.conditional else trainer.text

    def logit(encoded: Encoded) -> Tensor:
        return prompted.compare(encoded, text).logits[0, place]

    with trainer.test_precision.autocast():
        return maps_of(prompted.clip, image, lambda tokens: prompted.encode_image(image, tokens), logit)


def plain_maps(model: Model, image: Tensor, place: int) -> Maps:
    """The same of plain CLIP, with the class name in the template of the data set."""
    plain = model.prompted.clip
    with without_adapters(plain), model.trainer.test_precision.autocast():
        text = template_features(plain, [model.classnames[place]], [model.trainer.template])[0]  # (1, E)
        scale = plain.logit_scale.exp().detach()

        def logit(encoded: Encoded) -> Tensor:
            return cosine_logits(encoded.pooled, text, scale)[0, 0]

        return maps_of(plain, image, plain.visual.encode, logit)

"""Label tokens of LAMM: trainable vectors in the place of class names, and what holds them to the words they were.

Gao et al., "LAMM: Label Alignment for Multi-Modal Prompt Learning", AAAI 2024, Section 3. The hierarchical loss has
three terms: on the vectors (`LabelTokens.parameter_distance`), on the text features and on the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from clip import CLIP, Prompts
from trainers.parts.losses import distillation_loss, normalise
from trainers.parts.prompts import PROMPT_STD, Learner, readable

TOKENS = ("all", "shortest", "one")
PLACES = ("name", "prefix")


class LabelTokens(Learner):
    """Trainable vectors in the place of the words of class names, around another learner (LAMM, Section 3).

    `vectors` (K, d) holds the tokens of all classes one after the other, `lengths` (C,) how many each class has. All N
    sentences of a class share them.

    Args:
        model: the frozen CLIP.
        inner: learner of the sentences, whose text does not depend on the image.
        classnames: C class names.
        tokens: `all` tokens of each name; of each as many as the `shortest` name has; or `one`.
        place: `name`, or `prefix`: right behind the context.
        random: start from N(0, 0.02^2) instead of the words' embeddings.

    Raises:
        ValueError: unknown option, or a learner whose sentences do not say where the class name is.
    """

    class_bound = True
    vectors: nn.Parameter
    start: Tensor
    label: Tensor
    column: Tensor
    lengths: Tensor
    slots: Tensor

    def __init__(
        self,
        model: CLIP,
        inner: Learner,
        classnames: Sequence[str],
        tokens: str = "all",
        place: str = "name",
        random: bool = False,
    ):
        super().__init__()
        if tokens not in TOKENS or place not in PLACES:
            raise ValueError(f"label tokens {tokens!r} at {place!r}: expected {TOKENS} at {PLACES}")
        if inner.conditional or not hasattr(inner, "name_start"):
            raise ValueError(f"label tokens need fixed sentences with class names, {type(inner).__name__} has none")
        self.inner = inner
        self.text_modes, self.vision_modes = inner.text_modes, inner.vision_modes
        self.half_prompts = inner.half_prompts
        words = [model.words.ids(readable(name), inside=True) for name in classnames]
        ids, prompts = inner.text_prompts()
        names = cast(Tensor, inner.name_start).cpu()  # (R,)
        self.begin = names
        if place == "prefix" and prompts is not None and prompts.slots is not None:
            self.begin = prompts.slots.cpu().expand(len(ids), -1).amax(dim=1) + 1
        self.end = model.words.ends(ids.cpu())
        self._check(ids.cpu(), words, names)
        most = {"all": max(map(len, words)), "shortest": min(map(len, words)), "one": 1}[tokens]
        with torch.no_grad():
            table = model.token_embedding.weight
            self.words = [table[torch.tensor(word, device=table.device)].float().cpu() for word in words]
        self.most = most
        self.arrange([word[:most] for word in self.words])
        if random:
            nn.init.normal_(self.vectors, std=PROMPT_STD)
            self.start.copy_(self.vectors.detach())

    def _check(self, ids: Tensor, words: list[list[int]], begin: Tensor) -> None:
        """The class names must be where the sentences say they are."""
        for row, first in enumerate(begin.tolist()):
            word = words[row // self.text_modes]
            if ids[row, first : first + len(word)].tolist() != word:
                raise ValueError(f"sentence {row} does not hold the tokens of its class name from position {first} on")

    def arrange(self, values: Sequence[Tensor]) -> None:
        """Give every class its vectors (k, d): as many as the longest, or as its name has tokens if that is less."""
        counts = [len(value) for value in values]
        modes, most = self.text_modes, max(counts)
        slots = torch.empty(len(self.begin), most, dtype=torch.int64)
        for row, (first, end) in enumerate(zip(self.begin.tolist(), self.end.tolist())):
            k = counts[row // modes]
            # shorter names fill up with positions behind the end of their sentence, which nothing reads
            slots[row] = torch.tensor([*range(first, first + k), *range(end + 1, end + 1 + most - k)])
        device = self.vectors.device if hasattr(self, "vectors") else slots.device
        rows = [(c, j) for c, k in enumerate(counts) for j in range(k)]
        place = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
        vectors = torch.cat(list(values)).to(device, torch.float32)
        self.vectors = nn.Parameter(vectors.clone())
        self.register_buffer("lengths", torch.tensor(counts, device=device))  # in the checkpoint, to split `vectors`
        for name, value in {"start": vectors, "label": place[:, 0], "column": place[:, 1], "slots": slots}.items():
            self.register_buffer(name, value.clone().to(device), persistent=False)

    def match(self, names: Sequence[str], known: Mapping[str, Tensor]) -> None:
        """Give every class the vectors (k, d) `known` of its name, and its words where there are none or too few."""
        most = max([self.most, *(len(known[name]) for name in names if name in known)])
        empty = self.vectors.detach()[:0].cpu()
        values = []
        for name, word in zip(names, self.words):
            value = known.get(name, empty).cpu()
            values.append(torch.cat([value, word[len(value) : most]]))
        self.arrange(values)

    def tokens_by_class(self) -> list[Tensor]:
        """Vectors (k, d) of every class."""
        return list(self.vectors.detach().split(self.lengths.tolist()))

    def text_prompts(self) -> tuple[Tensor, Prompts | None]:
        return self.inner.text_prompts()

    def vision_prompts(self) -> Prompts | None:
        return self.inner.vision_prompts()

    def label_tokens(self) -> Prompts | None:
        if not len(self.vectors):
            return None
        most = self.slots.shape[1]
        padded = self.vectors.new_zeros(len(self.lengths), most, self.vectors.shape[1])
        padded = padded.index_put((self.label, self.column), self.vectors)  # (C, q, d)
        return Prompts((padded.repeat_interleave(self.text_modes, dim=0),), self.slots)

    def parameter_distance(self) -> Tensor:
        """|E - E0|^2 over all label tokens, the parameter term (LAMM, hierarchical loss)."""
        return (self.vectors - self.start).square().sum()


def feature_term(text: Tensor, reference: Tensor, label: Tensor, modes: int, skip_single_class: bool) -> Tensor:
    """Mean over images and modes of 1 - cos between the class's text feature and its reference.

    Args:
        text, reference: (C * N, E), class-major; the reference gets no gradient.
        label: (B,) classes of the images.
        modes: N.
        skip_single_class: 0 when all images of the batch are of one class.
    """
    distance = 1 - (normalise(text) * normalise(reference.detach())).sum(dim=-1)  # (C * N,)
    mean = distance.unflatten(0, (-1, modes)).mean(dim=1)[label].mean()
    return mean * (label != label[0]).any() if skip_single_class else mean


def logit_term(logits: Tensor, reference: Tensor, temperature: float, target: str) -> Tensor:
    """T^2 * cross-entropy between the softmax of both logits (B, C) at temperature T, mean over images.

    `target` reference: the reference is the soft target, without gradient. trained: the trained logits are the target
    and the reference the prediction, both with gradient (released code).
    """
    if target == "trained":
        return distillation_loss(reference, logits, temperature)
    return distillation_loss(logits, reference.detach(), temperature)

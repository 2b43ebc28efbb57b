"""Sentences about each class, such as a language model writes them, from JSON files: {class name: [sentence, ...]}."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clip import CLIP
from trainers.parts.losses import normalise
from trainers.parts.prompts import readable

SHOWN = 5


def read_descriptions(paths: Sequence[str], classnames: Sequence[str], subset: bool = False) -> list[list[str]]:
    """The sentences of every class, those of several files one after the other.

    Names are compared without regard to case, and `_` is a space.

    Args:
        paths: JSON files; each has every class.
        classnames: C names.
        subset: they are some of the classes of the data set; the files may have others, too.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is no such JSON, misses a class, has no sentence for one, or has a class that is unknown.
    """
    keys = [_key(name) for name in classnames]
    found: list[list[str]] = [[] for _ in keys]
    for path in paths:
        try:
            content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as err:
            raise ValueError(f"{path} is not a JSON file: {err}") from err
        if not isinstance(content, dict) or not all(map(_is_sentences, content.values())):
            raise ValueError(f"{path} holds no descriptions: expected {{class name: [sentence, ...], ...}}")
        by_key = {_key(name): sentences for name, sentences in content.items()}
        missing = [name for name, key in zip(classnames, keys) if not by_key.get(key)]
        unknown = [] if subset else [name for name in content if _key(name) not in set(keys)]
        for names, what in ((missing, "has no sentences about"), (unknown, "describes what is no class of the data:")):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                raise ValueError(f"{path} {what} {', '.join(names[:SHOWN])}{more}")
        for sentences, key in zip(found, keys):
            sentences += by_key[key]
    return found


def _is_sentences(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(sentence, str) and sentence.strip() for sentence in value)


def _key(name: str) -> str:
    return " ".join(readable(name).lower().split())


@torch.no_grad()
def description_features(model: CLIP, descriptions: Sequence[Sequence[str]]) -> list[Tensor]:
    """Pooled text features (k, E) of the k sentences of each class, not normalised; long sentences are cut."""
    device = model.token_embedding.weight.device
    counts = [len(sentences) for sentences in descriptions]
    texts = [sentence for sentences in descriptions for sentence in sentences]
    ids = model.words.tokenize(texts, truncate=True)
    parts = [model.encode_text(some.to(device), tokens=False).pooled for some in ids.split(1024)]
    return list(torch.cat(parts).split(counts))


def description_ensemble(model: CLIP, descriptions: Sequence[Sequence[str]]) -> Tensor:
    """Classifier (C, E): the mean of each class's normalised features, normalised again (CuPL, Pratt et al. 2023)."""
    features = description_features(model, descriptions)
    return normalise(torch.stack([normalise(feature).mean(dim=0) for feature in features]))


def descriptions_hash(descriptions: Sequence[Sequence[str]]) -> str:
    """First 16 hex digits of the sha256 over all sentences, in the order of the classes."""
    return hashlib.sha256(json.dumps(descriptions).encode()).hexdigest()[:16]

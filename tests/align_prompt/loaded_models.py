"""Shared fixtures of the tests of align_prompt."""

import torch

import align_prompt
from trainers.base import PromptedCLIP

NAMES = ["cat", "golden_retriever", "yin yang"]
SIDE = 32


def plain_logits(model: align_prompt.Model, images: torch.Tensor) -> torch.Tensor:
    """Logits of preprocessed images, one after the other, with all classes encoded anew for each."""
    prompted = model.trainer.model
    assert isinstance(prompted, PromptedCLIP)
    with torch.no_grad():
        return torch.cat([prompted(image[None]).logits for image in images]).float()

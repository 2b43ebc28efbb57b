"""Memory that is counted without computing anything."""

import pytest
import torch

import clip.layers
from benchmarks import align_step, memory
from clip import CLIP, Prompts
from trainers.parts.memory import MemoryPlan

TINY = {**align_step.VIT_B16, "vision_layers": 2, "transformer_layers": 2, "vision_width": 64, "transformer_width": 64}
TINY |= {"embed_dim": 32, "transformer_heads": 1}


@pytest.fixture(autouse=True)
def _attention(monkeypatch):
    """Put back at the end."""
    monkeypatch.setattr("clip.layers.attend", clip.layers.attend)


def test_a_row_keeps_the_same_with_and_without_memory():
    counted = []
    for device in ("cpu", "meta"):
        if device == "meta":
            memory.count_fused_attention()
        with torch.device(device):
            model = CLIP(**TINY).requires_grad_(False)
            tokens, layer = torch.zeros(1, 197, 64), torch.zeros(1, 2, 64, requires_grad=True)

        def encode(model=model, tokens=tokens, layer=layer):
            return model.visual.encode(tokens, Prompts((layer,), None))

        counted.append(MemoryPlan(1)._bytes(model, encode, ()))
    assert counted[0] == pytest.approx(counted[1], rel=0.01)
    assert counted[0] > 197 * 64 * 4


def test_what_is_needed_grows_with_images_modes_and_width(monkeypatch):
    monkeypatch.setattr(memory, "LEARNERS", {**memory.LEARNERS})
    monkeypatch.setitem(
        memory.BACKBONES, "ViT-B/16", {**align_step.VIT_B16, "vision_layers": 9, "transformer_layers": 9}
    )
    memory.count_fused_attention()
    names = [f"class {k}" for k in range(50)]
    few, many = (memory.needed(memory.prompted("MaPLe", "ViT-B/16", names, True), batch, False) for batch in (8, 64))
    whole = memory.needed(memory.prompted("MaPLe", "ViT-B/16", names, False), 64, False)
    modes = memory.needed(memory.prompted("ALIGN", "ViT-B/16", names, True), 64, True)
    assert few < many < whole < 2.1 * many
    assert modes - few == pytest.approx(4 * many - few, rel=0.5)  # of four times the images

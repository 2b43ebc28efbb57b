"""Parts of contrastive pre-training: patch dropping, chunks, options."""

import pytest
import torch

import clip
from dassl.config import get_cfg_default
from dassl.engine import add_trainer_defaults
from trainers.pretraining.contrastive import ContrastiveCLIP, TwoTowers


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_chunks_change_neither_features_nor_gradients(rng, share):
    """Against plain passes over the same parts, whose patches are drawn alike."""
    torch.manual_seed(0)
    model = clip.CLIP(24, 32, 2, 64, 8, 77, 2048, 48, 2, 2)
    image, ids = torch.randn(5, 3, 32, 32, generator=rng), torch.randint(1, 1500, (5, 6), generator=rng)
    ids[:, -1] = 2047
    weight = torch.randn(2, 5, 24, generator=rng)
    whole, chunks = TwoTowers(model), TwoTowers(model, chunk=2)
    parts = [slice(0, 5)] if share == 1 else [slice(0, 2), slice(2, 4), slice(4, 5)]

    def plain():
        return (torch.cat(column) for column in zip(*(whole(image[part], ids[part], share)[:2] for part in parts)))

    found = []
    for features in (plain, lambda: chunks(image, ids, share)[:2]):
        model.zero_grad()
        torch.manual_seed(1)
        pair = torch.stack(tuple(features()))
        (pair * weight).sum().backward()
        found.append([pair.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 20
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def trainer(**options):
    made = ContrastiveCLIP.__new__(ContrastiveCLIP)
    made.cfg, made.device = get_cfg_default(), torch.device("cpu")
    add_trainer_defaults(made.cfg)
    made.cfg.MODEL.BACKBONE.NAME = "a ResNet"
    made.cfg.TRAINER.CONTRASTIVE.update(options)
    made.load_clip = lambda: clip.CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 2048, 48, 2, 1)
    return made


def test_options_are_checked():
    options = {"MAX_SCALE": 0.5, "FULL_EPOCHS": -1, "EVAL_FREQ": -1, "TEMPERATURE": "0,01"}
    with pytest.raises(ValueError) as err:
        ContrastiveCLIP.check_cfg(made := trainer(**options), made.cfg)
    assert all(f"TRAINER.CONTRASTIVE.{key} is {value!r}, expected" in str(err.value) for key, value in options.items())


def test_chunks_refuse_batch_norms():
    """Statistics of a chunk are not those of the batch, and computing it again would count them twice."""
    with pytest.raises(ValueError, match="CHUNK is 2, but the image tower has batch norms"):
        trainer(CHUNK=2).build_model()

"""Parts of contrastive pre-training: patch dropping, chunks, options."""

import pytest
import torch

import clip
from dassl.config import get_cfg_default
from dassl.engine import add_trainer_defaults
from trainers.parts.losses import contrastive_loss, mean_patch
from trainers.pretraining.contrastive import ContrastiveCLIP, TwoTowers


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_chunks_change_neither_features_nor_gradients(rng, share, patches):
    """Against plain passes over the same parts, whose patches are drawn alike."""
    torch.manual_seed(0)
    model = clip.CLIP(24, 32, 2, 64, 8, 77, 2048, 48, 2, 2)
    image, ids = torch.randn(5, 3, 32, 32, generator=rng), torch.randint(1, 1500, (5, 6), generator=rng)
    ids[:, -1] = 2047
    weight = torch.randn(3 if patches else 2, 5, 24, generator=rng)
    whole, chunks = TwoTowers(model, patches=patches), TwoTowers(model, chunk=2, patches=patches)
    parts = [slice(0, 5)] if share == 1 else [slice(0, 2), slice(2, 4), slice(4, 5)]

    def plain():
        return (torch.cat(column) for column in zip(*(features(whole, image[part], ids[part]) for part in parts)))

    def features(towers, image, ids):
        *pair, _, mean = towers(image, ids, share)
        return [feature for feature in (*pair, mean) if feature is not None]

    found = []
    for parts_of in (plain, lambda: features(chunks, image, ids)):
        model.zero_grad()
        torch.manual_seed(1)
        pair = torch.stack(tuple(parts_of()))
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
    options = {"TOKEN_WEIGHT": -1.0, "MAX_SCALE": 0.5, "FULL_EPOCHS": -1, "EVAL_FREQ": -1, "TEMPERATURE": "0,01"}
    with pytest.raises(ValueError) as err:
        ContrastiveCLIP.check_cfg(made := trainer(**options), made.cfg)
    assert all(f"TRAINER.CONTRASTIVE.{key} is {value!r}, expected" in str(err.value) for key, value in options.items())


def test_chunks_refuse_batch_norms():
    """Statistics of a chunk are not those of the batch, and computing it again would count them twice."""
    with pytest.raises(ValueError, match="CHUNK is 2, but the image tower has batch norms"):
        trainer(CHUNK=2).build_model()


def pairs(rng):
    """A batch as `parse_batch_train` gives it: the first two captions are true of both of the first two images."""
    ids = torch.randint(1, 1500, (4, 6), generator=rng)
    ids[:, -1] = 2047
    positive = torch.eye(4, dtype=torch.bool)
    positive[:2, :2] = True
    return torch.randn(4, 3, 32, 32, generator=rng), ids, positive


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_token_weight(rng, weight):
    """The contrastive loss with mean patches in the place of class tokens; nothing of it without TOKEN_WEIGHT."""
    made, batch = trainer(KEEP_PATCHES=1.0, **({"TOKEN_WEIGHT": weight} if weight else {})), pairs(rng)
    model = clip.CLIP(24, 32, 2, 64, 8, 77, 2048, 48, 2, 2)
    made.towers, made.epoch, made.max_epoch = TwoTowers(model, patches=made.options.TOKEN_WEIGHT > 0), 0, 9
    made.parse_batch_train = lambda batch: batch
    found = made.losses(batch)
    image, text = model.encode_image(batch[0]), model.encode_text(batch[1]).pooled
    text, scale = text / text.norm(dim=-1, keepdim=True), model.logit_scale.exp()
    expected = {
        "contrastive": contrastive_loss(image.pooled / image.pooled.norm(dim=-1, keepdim=True), text, scale, batch[2])
    }
    if weight:
        expected["tokens"] = weight * contrastive_loss(mean_patch(image.tokens), text, scale, batch[2])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_token_weight_is_off_by_default():
    assert trainer().options.TOKEN_WEIGHT == 0

"""2SFS: both stages against plain towers, a whole run against two optimizers of torch, classes of a file, options."""

import copy
import math

import pytest
import torch
from plain_towers import assert_same_gradients, cross_entropy, image_feature, logits_of, text_feature, trainer_of, unit
from torch.nn import functional as F

import clip
import train
from dassl.config import get_cfg_default
from dassl.engine import command
from tests.short_options import short_run
from tests.tolerance import assert_close
from trainers.adapters.two_sfs import TwoSFS

LABELS = torch.tensor([0, 3, 1])


@pytest.fixture
def build(tiny_clip, names):
    def make(**options):
        torch.manual_seed(1)
        trainer = trainer_of(TwoSFS, copy.deepcopy(tiny_clip), names, noise=0.2, **options)
        return trainer, trainer.model.learner.eval()

    return make


def plain_logits(model, names, images):
    text = [text_feature(model, f"a photo of a {name.replace('_', ' ')}.", []) for name in names]
    return logits_of(model, [image_feature(model, image, []) for image in images], text)


@pytest.mark.parametrize(("towers", "count"), [(("text", "vision"), 2 * (9 + 10)), (("text",), 18), (("vision",), 20)])
def test_first_stage(build, tiny_clip, names, images, towers, count):
    trainer, learner = build(TOWERS=towers)
    assert len(learner.norms) == count  # weight and bias of two per block, and those around the blocks
    expected = plain_logits(trainer.model.clip, names, images)
    found = trainer.model(images).logits
    assert_close(found, expected, 2e-5)
    assert not torch.allclose(found, plain_logits(tiny_clip, names, images), atol=0.02)  # the norms matter
    loss = trainer.losses({"img": images, "label": LABELS})["ce"]
    assert_same_gradients(loss, cross_entropy(expected, LABELS), learner.norms, 1e-3)
    trainer.losses({"img": images, "label": LABELS})["ce"].backward()
    assert learner.classifier.grad is None


def test_norms_inside_the_blocks_alone(build, names, images):
    """As in the released code: those before, behind and at the end of the blocks stay."""
    trainer, learner = build(NORMS="blocks")
    assert len(learner.norms) == 2 * (8 + 8)
    model = trainer.model.clip.requires_grad_(False)
    learner.begin(second=False)
    loss = trainer.losses({"img": images, "label": LABELS})["ce"]
    assert_same_gradients(loss, cross_entropy(plain_logits(model, names, images), LABELS), learner.norms, 1e-3)
    assert not any(norm.weight.requires_grad for norm in (model.visual.ln_pre, model.visual.ln_post, model.ln_final))


def test_second_stage(build, images):
    trainer, learner = build()
    learner.begin(second=True)
    found = trainer.model(images).logits
    features = [image_feature(trainer.model.clip, image, []) for image in images]
    expected = logits_of(trainer.model.clip, features, list(learner.classifier))
    assert_close(found, expected, 2e-5)
    loss = trainer.losses({"img": images, "label": LABELS})["ce"]
    (reference,) = torch.autograd.grad(cross_entropy(expected, LABELS), learner.classifier)
    loss.backward()
    assert_close(learner.classifier.grad, reference, 1e-4)
    assert all(norm.grad is None for norm in learner.norms)


def test_the_stage_is_in_the_file(build):
    _, learner = build()
    learner.begin(second=True)
    _, other = build()
    other.load_state_dict(learner.state_dict())
    assert other.in_second
    assert [p.requires_grad for p in (other.norms[0], other.classifier)] == [False, True]


def test_rows_of_the_classifier_follow_the_names(build, names):
    trainer, learner = build()
    learner.begin(second=True)
    stored = ["a", "horse", "cat"]
    content = {"state_dict": {"classifier": torch.eye(3, 32), "second": torch.tensor(True)}, "classnames": stored}
    trainer.classnames = lambda: names
    rows = trainer.for_classes("file", content)["classifier"]
    assert_close(rows[[0, 4]], torch.eye(3, 32)[[2, 0]])
    assert learner.unknown == [1, 2, 3]
    with torch.no_grad():
        learner.classifier.copy_(rows)
    trainer.test_precision = type("fp32", (), {"autocast": staticmethod(lambda: torch.autocast("cpu", enabled=False))})
    trainer.embed(learner.unknown)
    assert_close(learner.classifier.detach()[[0, 4]], torch.eye(3, 32)[[2, 0]])
    for k in (1, 2, 3):
        sentence = f"a photo of a {names[k].replace('_', ' ')}."
        assert_close(
            learner.classifier.detach()[k], unit(text_feature(trainer.model.clip, sentence, [])).detach(), 2e-5
        )


def test_rates(build):
    trainer, learner = build(FIRST=0.7)
    trainer.train_loader_x, trainer._models = range(4), {}
    trainer.cfg.OPTIM = get_cfg_default().OPTIM
    trainer.cfg.OPTIM.merge_from_list(["NAME", "sgd", "LR", 0.1, "MAX_EPOCH", 3, "FINAL_LR", 0.01])
    trainer.register_model = lambda *parts: None
    trainer.register_learned("two_sfs", learner)
    assert trainer.first_steps == 8  # of 12
    rates = []
    for _ in range(12):
        rates.append(trainer.optim.param_groups[0]["lr"])
        trainer.optim.step()
        trainer.sched.step()
    steps = [(k, 8) for k in range(8)] + [(k, 4) for k in range(4)]
    assert rates == pytest.approx([0.01 + 0.045 * (1 + math.cos(math.pi * k / n)) for k, n in steps])
    trainer.cfg.OPTIM.WARMUP_EPOCH = 1
    with pytest.raises(ValueError, match="WARMUP_EPOCH is 1, but the stages of 2SFS have none: set it 0"):
        trainer.register_learned("two_sfs", learner)


@pytest.mark.slow
def test_a_run_is_that_of_two_optimizers_and_goes_on_after_a_kill(
    tiny_clip, tmp_path, monkeypatch, few_emoji, pictures_root
):
    clip.save_model(tiny_clip, tmp_path / "tiny.safetensors")
    own = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "INPUT.SIZE": "(32, 32)",
        "INPUT.TRANSFORMS": "('random_resized_crop', 'normalize')",
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 0.01,
        "OPTIM.WEIGHT_DECAY": 0.1,
        "OPTIM.FINAL_LR": 1e-6,
        "OPTIM.MAX_EPOCH": 3,
        "TRAINER.TWO_SFS.FIRST": 0.5,
        "TRAINER.TWO_SFS.PREC": "fp32",
    }
    pairs = short_run(tmp_path, tmp_path / "tiny.safetensors", **own)
    flags = ["--root", pictures_root, "--trainer", "TwoSFS", "--seed", "1", *pairs, "OUTPUT_DIR"]
    built, build, batches, losses = [], command.build_trainer, [], TwoSFS.losses
    monkeypatch.setattr(command, "build_trainer", lambda cfg: built.append(build(cfg)) or built[-1])
    monkeypatch.setattr(TwoSFS, "losses", lambda self, batch: batches.append(batch) or losses(self, batch))
    whole = train.main([*flags, str(tmp_path / "whole")])
    trained = built[0].model.learner
    first, total = built[0].first_steps, len(batches)
    assert 0 < first < total
    assert first % (total // 3) > 0  # the stage changes within an epoch

    model, names = clip.load(str(tmp_path / "tiny.safetensors"))[0], built[0].dm.dataset.classnames
    ids = clip.tokenize([f"{built[0].template.format(name)}" for name in names], vocab_size=2048)
    norms = [p for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()]
    adam = torch.optim.AdamW(norms, 0.01, weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, first, 1e-6)
    scale = model.logit_scale.exp().detach()
    for step, batch in enumerate(batches[:total]):
        if step == first:
            rows = F.normalize(model.encode_text(ids).pooled, dim=1).detach().requires_grad_()
            adam = torch.optim.AdamW([rows], 0.01, weight_decay=0.1)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, total - first, 1e-6)
        text = model.encode_text(ids).pooled if step < first else rows
        image = model.encode_image(batch["img"]).pooled
        logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
        adam.zero_grad()
        F.cross_entropy(logits, batch["label"]).backward()
        adam.step()
        cosine.step()
    assert_close(trained.classifier.detach(), rows.detach(), 1e-3)
    for one, other in zip(trained.norms, norms):
        assert_close(one.detach(), other.detach(), 1e-3)

    epoch = TwoSFS.after_epoch

    def stop(self):
        if self.epoch == 2:
            raise RuntimeError("killed")
        epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(TwoSFS, "after_epoch", stop)
        with pytest.raises(RuntimeError, match="killed"):
            train.main([*flags, str(tmp_path / "stopped")])
    assert train.main([*flags, str(tmp_path / "stopped")])["accuracy"] == whole["accuracy"]
    for one, other in zip(trained.state_dict().values(), built[-1].model.learner.state_dict().values()):
        assert torch.equal(one, other)


def test_the_image_tower_is_not_plain(build):
    assert "trains the image tower" in build()[0].changes_images()
    assert build(TOWERS=("text",))[0].changes_images() == ""


def test_bad_options(build):
    with pytest.raises(ValueError, match=r"(?s)FIRST is 0.*TOWERS is \('image',\), expected some of text, vision"):
        build(FIRST=0.0, TOWERS=("image",))

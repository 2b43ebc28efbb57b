"""Tip-Adapter against loops over images, keys and weights; its search, its choices, fine-tuning and new files."""

import itertools
import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
import train
from dassl.config import get_cfg_default
from dassl.engine import command as command_module
from tests.short_options import short_run
from trainers.adapters.tip_adapter import TipAdapter
from trainers.base import PromptedCLIP, PromptTrainer
from trainers.parts import support
from trainers.parts.cache_model import Cache
from trainers.parts.templates import IMAGENET_TEMPLATES_SELECT

SHOTS, VIEWS = 3, 2


class Loader(list):
    """Batches that an evaluation loader would give."""

    def __init__(self, images, labels, size=4):
        super().__init__()
        for k in range(0, len(images), size):
            part = slice(k, k + size)
            self.append({"img": images[part], "label": labels[part], "index": torch.arange(len(images))[part]})


@pytest.fixture
def build(tiny_clip, names, rng, monkeypatch):
    """A trainer on 5 classes with 3 training, 2 validation and 4 test images each, without folders and optimiser."""

    def make(*options, dataset="Mine", val=True, final="last_step"):
        class Bare(TipAdapter):
            template = "a photo of a {}."

        trainer = object.__new__(Bare)
        trainer.cfg = CfgNode(
            {
                "TRAINER": TipAdapter.defaults(),
                "DATASET": {"NAME": dataset},
                "DATALOADER": {"TEST": {"BATCH_SIZE": 4}},
                "TEST": {"FINAL_MODEL": final, "FEATURE_CACHE": False},
                "SEED": 1,
            }
        )
        trainer.cfg.TRAINER.TIP_ADAPTER.merge_from_list(["AUGMENT_EPOCH", VIEWS, *options])
        trainer.check_cfg(trainer.cfg)
        base = torch.randn(5, 3, 32, 32, generator=rng)

        def images(count):
            label = torch.arange(5).repeat_interleave(count)
            return base[label] + 0.8 * torch.randn(len(label), 3, 32, 32, generator=rng), label

        trainer.views = [images(SHOTS) for _ in range(VIEWS)]
        trainer.sets = {"val": images(2), "test": images(4)}
        calls = []

        def loader(cfg, data_source, batch_size, tfm, is_train, seed):
            calls.append((len(data_source), tfm, is_train, seed))
            stacked = [torch.cat(parts) for parts in zip(*trainer.views)]
            return Loader(*stacked, size=batch_size)

        monkeypatch.setattr(support, "build_data_loader", loader)
        trainer.loader_calls = calls
        trainer.val_loader = Loader(*trainer.sets["val"]) if val else None
        trainer.test_loader = Loader(*trainer.sets["test"])
        data = SimpleNamespace(train_x=[None] * 5 * SHOTS, val=["v"], test=["t"])
        trainer.dm = SimpleNamespace(dataset=data, tfm_train="augment", tfm_test=None)
        trainer.device = torch.device("cpu")
        trainer.precision = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
        trainer.known_features = {}
        trainer.by_steps = trainer.options.FINETUNE
        learner = trainer.build_learner(tiny_clip, names).eval()
        trainer.model = PromptedCLIP(tiny_clip, learner, trainer.build_score(learner))
        return trainer

    return make


def unit(x):
    return x / x.square().sum().sqrt()


def plain_parts(model, trainer, names, images):
    """Cosines to the template's classifier (B, C), and per image and class the affinities of the class's keys."""
    count = len(trainer.views[0][0])
    keys = []
    for k in range(count):
        keys.append(unit(sum(model.encode_image(view[0][k][None]).pooled[0] for view in trainer.views) / VIEWS))
    zero_shot, affinities = [], []
    for image in images:
        f = unit(model.encode_image(image[None]).pooled[0])
        rows = []
        for name in names:
            ids = clip.tokenize([f"a photo of a {name.replace('_', ' ')}."], vocab_size=model.vocab_size)
            rows.append(f @ unit(model.encode_text(ids).pooled[0]))
        zero_shot.append(torch.stack(rows))
        affinities.append(torch.stack([f @ key for key in keys]))
    return torch.stack(zero_shot), torch.stack(affinities)


def plain_logits(parts, labels, alpha, beta, scale, classes=5):
    zero_shot, affinity = parts
    rows = []
    for z, a in zip(zero_shot, affinity):
        row = scale * z
        for value, label in zip(a, labels.tolist()):
            row = row + alpha * torch.exp(-beta * (1 - value)) * F.one_hot(torch.tensor(label), classes)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize(("scale", "alpha", "beta"), [(100.0, 1.17, 1.0), (None, 8.0, 3.5)])
def test_logits_are_those_of_the_loops(build, tiny_clip, names, scale, alpha, beta):
    trainer = build("SCALE", scale, "INIT_ALPHA", alpha, "INIT_BETA", beta, "SELECT", "none")
    figures = trainer.fit()
    assert figures == {"alpha": pytest.approx(alpha), "beta": pytest.approx(beta)}
    images = trainer.sets["test"][0]
    with torch.no_grad():
        found = trainer.model(images).logits
        parts = plain_parts(tiny_clip, trainer, names, images)
        own = float(tiny_clip.logit_scale.exp()) if scale is None else scale
        expected = plain_logits(parts, trainer.views[0][1], alpha, beta, own)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert trainer.loader_calls == [(5 * SHOTS * VIEWS, "augment", False, 1)]


def test_the_search_takes_the_first_best_pair(build, tiny_clip, names):
    """The published double loop on validation images, with beta outside and alpha inside."""
    trainer = build("SEARCH_SCALE", (9.0, 20.0), "SEARCH_STEP", (6, 4), "SCALE", 20.0)
    figures = trainer.fit()
    images, label = trainer.sets["val"]
    best, chosen = 0.0, None
    with torch.no_grad():
        parts = plain_parts(tiny_clip, trainer, names, images)
        for i in range(6):
            for j in range(4):
                beta, alpha = 0.1 + i * (9.0 - 0.1) / 6, 0.1 + j * (20.0 - 0.1) / 4
                logits = plain_logits(parts, trainer.views[0][1], alpha, beta, 20.0)
                accuracy = float((logits.argmax(1) == label).float().mean())
                if accuracy > best:
                    best, chosen = accuracy, (alpha, beta)
    assert (figures["alpha"], figures["beta"]) == pytest.approx(chosen, rel=1e-5)
    assert figures["val_accuracy"] == pytest.approx(100 * best)
    assert float(trainer.model.learner.alpha) == pytest.approx(chosen[0], rel=1e-5)
    assert trainer.chosen_on() == "val"


def test_every_image_is_encoded_once(build, tiny_clip, monkeypatch):
    trainer, rows = build(), []
    encode = type(tiny_clip).encode_image
    monkeypatch.setattr(type(tiny_clip), "encode_image", lambda self, x: rows.append(len(x)) or encode(self, x))
    trainer.fit()
    trainer.search()
    assert sum(rows) == 5 * SHOTS * VIEWS + 5 * 2


@pytest.mark.parametrize(
    ("select", "dataset", "val", "split"),
    [
        ("val", "Mine", True, "val"),
        ("val", "Mine", False, None),
        ("val", "ImageNet", True, "val"),
        ("none", "Mine", True, None),
        ("released", "Mine", True, "val"),
        ("released", "ImageNet", True, "test"),
        ("released", "Mine", False, "test"),
    ],
)
def test_what_the_search_looks_at(build, select, dataset, val, split, caplog):
    trainer = build("SELECT", select, dataset=dataset, val=val)
    assert trainer.search_split() == split
    with caplog.at_level(logging.WARNING):
        figures = trainer.fit()
    assert set(figures) == {"alpha", "beta"} | ({f"{split}_accuracy"} if split else set())
    assert ("not searched" in caplog.text) == (select == "val" and split is None)


def test_test_images_in_the_place_of_validation_images_are_not_searched_on(build):
    trainer = build()
    trainer.dm.dataset.val = trainer.dm.dataset.test
    assert trainer.search_split() is None


def test_choosing_on_test_images_warns_and_is_recorded(build, caplog, monkeypatch):
    monkeypatch.setattr(PromptTrainer, "build_model", lambda self: None)
    for dataset, options in (("ImageNet", []), ("Mine", ["FINETUNE", True])):
        trainer = build("SELECT", "released", *options, dataset=dataset)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer.build_model()
        assert "chooses on the test images" in caplog.text
        assert trainer.chosen_on() == "test"
    assert build("SELECT", "released").chosen_on() == "val"
    assert build("FINETUNE", True).chosen_on() == "val"


def test_fine_tuning_learns_the_keys_with_the_weights_of_the_start(build, tiny_clip, names):
    trainer = build("FINETUNE", True, "SCALE", 100.0, "INIT_ALPHA", 2.0, "INIT_BETA", 1.5, "SEARCH_STEP", (3, 3))
    trainer.fill_cache()
    trainer.search()
    learner, (images, label) = trainer.model.learner, trainer.sets["val"]
    assert [name for name, _ in learner.named_parameters()] == ["keys"]
    learner.alpha.fill_(7.0)
    learner.train()
    loss = F.cross_entropy(trainer.model(images).logits, label)
    (grad,) = torch.autograd.grad(loss, learner.keys)
    features = [unit(tiny_clip.encode_image(image[None]).pooled[0]) for image in images]
    keys = learner.keys.detach().clone().requires_grad_()
    zero_shot, _ = plain_parts(tiny_clip, trainer, names, images)
    affinity = torch.stack([torch.stack([f @ key for key in keys]) for f in features])
    expected = F.cross_entropy(plain_logits((zero_shot, affinity), trainer.views[0][1], 2.0, 1.5, 100.0), label)
    (reference,) = torch.autograd.grad(expected, keys)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))
    learner.eval()
    with torch.no_grad():  # evaluation takes the weights that were found
        parts = plain_parts(tiny_clip, trainer, names, images)
        expected = plain_logits(parts, trainer.views[0][1], 7.0, float(learner.beta), 100.0)
        torch.testing.assert_close(trainer.model(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_released_choice_of_the_epoch_and_of_the_weights(build):
    options = ["FINETUNE", True, "SELECT", "released", "SEARCH_STEP", (3, 3), "SCALE", 0.1, "INIT_ALPHA", 5.0]
    trainer = build(*options)
    trainer.fill_cache()
    learner = trainer.model.learner
    good, accuracy = learner.keys.detach().clone(), trainer.test_accuracy(*learner.start)
    trainer.keep_best_on_test(last=False)
    state = trainer.extra_state()
    with torch.no_grad():
        learner.keys.mul_(-50)  # a bad epoch
    assert trainer.test_accuracy(*learner.start) < accuracy
    again = build(*options)
    again.load_extra_state(state)  # the run goes on in another process
    again.model.learner.labels.copy_(learner.labels)
    again.views, again.sets, again.test_loader = trainer.views, trainer.sets, trainer.test_loader
    again.keep_best_on_test(last=True)
    for one in (trainer, again):
        if one is trainer:
            one.keep_best_on_test(last=True)
        assert one.test_accuracy(*learner.start) == accuracy
        torch.testing.assert_close(one.model.learner.keys.detach(), good)
    learner.alpha.fill_(1e-6)
    learner.beta.fill_(9.0)  # a search that did harm
    assert trainer.test_accuracy(learner.alpha, learner.beta) < trainer.test_accuracy(*learner.start)
    trainer.keep_better_on_test()
    assert (float(learner.alpha), float(learner.beta)) == pytest.approx(learner.start)


def test_templates_and_released_settings(build):
    assert build().templates == ("a photo of a {}.",)
    assert build(dataset="ImageNet").templates == IMAGENET_TEMPLATES_SELECT
    assert build("TEMPLATES", "dataset", dataset="ImageNet").templates == ("a photo of a {}.",)
    assert tuple(build(dataset="OxfordFlowers").released) == (10.0, 50.0, 50.0)
    assert tuple(build(dataset="OxfordPets").released) == tuple(build(dataset="ImageNet").released) == (1.17, 7.0, 3.0)
    assert build(dataset="EuroSAT").model.learner.start == (2.0, 1.0)
    assert build("INIT_ALPHA", 4.0, dataset="EuroSAT").model.learner.start == (4.0, 1.0)


def test_a_file_with_another_number_of_keys(build):
    trainer = build()
    trainer.fit()
    weights = trainer.model.learner.state_dict()
    assert set(weights) == {"keys", "labels", "alpha", "beta"}
    other = Cache(trainer.model.learner.features, images=2, alpha=1.0, beta=1.0, learned=True)
    holder = build()
    holder.model.learner = other
    other.load_state_dict(holder.adapt_state_dict("tip_adapter", weights))
    torch.testing.assert_close(other.keys.detach(), weights["keys"])
    assert other.class_bound


def test_the_released_schedule_starts_at_the_rate_of_the_config(build):
    """A warm-up would leave its own rate in the optimiser, from which a cosine of torch goes on."""
    trainer = build("FINETUNE", True)
    trainer.train_loader_x, trainer._scheds = range(5), {}
    trainer.register_model = lambda name, learned, optim, sched: trainer._scheds.update({name: sched})
    trainer.cfg.OPTIM = get_cfg_default().OPTIM
    trainer.cfg.OPTIM.merge_from_list(["NAME", "sgd", "LR", 0.1, "MAX_EPOCH", 2, "LR_SCHEDULER", "batch_cosine"])
    trainer.register_learned("tip_adapter", trainer.model.learner)
    rates = []
    for _ in range(11):
        rates.append(trainer.optim.param_groups[0]["lr"])
        trainer.optim.step()
        trainer._scheds["tip_adapter"].step()
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(11)])
    trainer.cfg.OPTIM.WARMUP_EPOCH = 1
    with pytest.raises(ValueError, match=r"WARMUP_EPOCH is 1, but the released schedule has no warm-up"):
        trainer.register_learned("tip_adapter", trainer.model.learner)


def test_bad_options_are_refused(build):
    with pytest.raises(
        ValueError, match=r"(?s)AUGMENT_EPOCH is 0.*TEMPLATES is 'all'.*SELECT is 'test'.*SEARCH_SCALE is"
    ):
        build("AUGMENT_EPOCH", 0, "TEMPLATES", "all", "SELECT", "test", "SEARCH_SCALE", (1.0,))
    with pytest.raises(ValueError, match=r"(?s)SCALE is 'x', expected a number above 0.*SEARCH_SCALE is \('x', 'y'\)"):
        build("SCALE", "x", "SEARCH_SCALE", ("x", "y"))
    with pytest.raises(ValueError, match="FINAL_MODEL must be last_step"):
        build("FINETUNE", True, "SELECT", "released", final="best_val")


@pytest.mark.slow
@pytest.mark.parametrize("select", ["val", "released"])
def test_fine_tuning_from_the_command_line(tiny_clip, tmp_path, select, monkeypatch, few_emoji, pictures_root):
    clip.save_model(tiny_clip, tmp_path / "tiny.safetensors")
    own = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "INPUT.SIZE": "(32, 32)",
        "INPUT.TRANSFORMS": "('random_resized_crop', 'normalize')",
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 0.05,
        "OPTIM.MAX_EPOCH": 3,
        "TRAINER.TIP_ADAPTER.FINETUNE": True,
        "TRAINER.TIP_ADAPTER.AUGMENT_EPOCH": 2,
        "TRAINER.TIP_ADAPTER.SEARCH_STEP": "(3,3)",
        "TRAINER.TIP_ADAPTER.SELECT": select,
    }
    pairs = short_run(tmp_path, tmp_path / "tiny.safetensors", **own)
    flags = ["--root", pictures_root, "--trainer", "TipAdapter", "--seed", "1"]
    built, build = [], command_module.build_trainer
    monkeypatch.setattr(command_module, "build_trainer", lambda cfg: built.append(build(cfg)) or built[-1])
    result = train.main([*flags, "--output-dir", str(tmp_path / "run"), *pairs])
    assert (result["epochs"], result["trainable_parameters"]) == (3, 15 * 32)
    assert result["selection"] == ("test" if select == "released" else "val")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    steps = [r for r in records if r["kind"] == "train"]
    rates = [step["lr"] for step in steps]
    assert len(rates) == 9
    assert rates[0] == 0.05
    assert all(a > b for a, b in itertools.pairwise(rates))  # the schedule goes by step
    first, *_, last = [r["loss"] for r in records if r["kind"] == "epoch"]
    assert last < first
    again = train.main(
        [*flags, "--eval-only", "--model-dir", str(tmp_path / "run"), "--output-dir", str(tmp_path / "again"), *pairs]
    )
    assert again["accuracy"] == result["accuracy"]
    first, second = (trainer.model.learner for trainer in built)
    assert torch.equal(first.keys, second.keys)
    assert torch.equal(first.alpha, second.alpha)

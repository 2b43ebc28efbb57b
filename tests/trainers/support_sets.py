"""A trainer of a method that fits few images in one go, without data, folders and optimizer."""

from types import SimpleNamespace

import torch
from yacs.config import CfgNode

import clip
from dassl.config import get_cfg_default
from trainers.base import PromptedCLIP
from trainers.parts import support

TEMPLATE = "a photo of a {}."


class Loader(list):
    """Batches that an evaluation loader would give."""

    def __init__(self, images, labels, size=4):
        super().__init__()
        for k in range(0, len(images), size):
            part = slice(k, k + size)
            self.append({"img": images[part], "label": labels[part], "index": torch.arange(len(images))[part]})


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def class_feature(model, name, template=TEMPLATE):
    """Normalised text feature (E,) of one class."""
    ids = clip.tokenize([template.format(name.replace("_", " "))], vocab_size=model.vocab_size)
    return unit(model.encode_text(ids).pooled[0])


def support_trainer(
    method, model, names, monkeypatch, shots=3, views=1, val=True, dataset="Mine", others=(), optim=(), **options
):
    """A trainer on the named classes, `shots` training and 2 validation images each.

    `sets` has what its loaders give: "train", one pair of images and labels per view, and "val".
    """

    class Bare(method):
        template = TEMPLATE

    Bare.__name__ = method.__name__
    rng, count = torch.Generator().manual_seed(3), len(names)
    base = torch.randn(count, 3, 32, 32, generator=rng)

    def images(number):
        label = torch.arange(count).repeat_interleave(number)
        return base[label] + 0.8 * torch.randn(len(label), 3, 32, 32, generator=rng), label

    trainer = object.__new__(Bare)
    nodes = method.defaults()
    nodes[method.node].merge_from_list([item for pair in options.items() for item in pair])
    data = {"NAME": dataset, "NUM_SHOTS": shots, "DESCRIPTIONS": [], "SUBSAMPLE_CLASSES": "all", **dict(others)}
    trainer.cfg = CfgNode(
        {
            "TRAINER": nodes,
            "DATASET": data,
            "DATALOADER": {"TEST": {"BATCH_SIZE": 4}, "TRAIN_X": {"BATCH_SIZE": 4}},
            "OPTIM": get_cfg_default().OPTIM,
            "TEST": {"FEATURE_CACHE": False, "FINAL_MODEL": "last_step"},
            "SEED": 1,
        }
    )
    trainer.cfg.OPTIM.merge_from_list([item for pair in dict(optim).items() for item in pair])
    trainer.check_cfg(trainer.cfg)
    trainer.sets = {"train": [images(shots) for _ in range(views)], "val": images(2)}
    trainer.loader_calls = []

    def loader(cfg, data_source, batch_size, tfm, is_train, seed):
        trainer.loader_calls.append((len(data_source), tfm, is_train, seed))
        return Loader(*(torch.cat(parts) for parts in zip(*trainer.sets["train"])), size=batch_size)

    monkeypatch.setattr(support, "build_data_loader", loader)
    trainer.val_loader = Loader(*trainer.sets["val"]) if val else None
    own = SimpleNamespace(train_x=[None] * count * shots, val=["v"], test=["t"], classnames=names)
    facts = {"num_classes": count, "lab2cname": dict(enumerate(names))}
    trainer.dm = SimpleNamespace(dataset=own, tfm_train="augment", tfm_test=None, **facts)
    vars(trainer).update(facts)
    trainer.device = torch.device("cpu")
    trainer.precision = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
    learner = trainer.build_learner(model, names).eval()
    trainer.model = PromptedCLIP(model, learner, trainer.build_score(learner))
    return trainer

"""Losses and accuracy of trainers on whatever `dassl` stands beside this file: losses.py DATA OUTPUT METHOD ..."""

import importlib
import json
import sys
from pathlib import Path

import pictures  # noqa: F401 - registers the data set
import torch

import clip
import dassl
import trainers
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

BACKBONE = "emoji-ViT-S/8"
OPTIONS = {
    "CoOp": {},
    "MaPLe": {"PROMPT_DEPTH": 3},
    "ALIGN": {"PROMPT_DEPTH": 3, "VISION_PROMPT_NUMBER": 2, "TEXT_PROMPT_NUMBER": 2},
}


def config(data, output, method):
    cfg = get_cfg_default()
    if hasattr(trainers, "extend_cfg"):
        trainers.extend_cfg(cfg)
    else:
        from dassl.engine import add_trainer_defaults

        add_trainer_defaults(cfg)
    look = clip.input_of(BACKBONE)
    values = {
        "DATASET": {"NAME": "Pictures", "ROOT": data},
        "INPUT": {
            "SIZE": (look.side, look.side),
            "INTERPOLATION": look.interpolation,
            "PIXEL_MEAN": list(look.mean),
            "PIXEL_STD": list(look.std),
            "TRANSFORMS": ("normalize",),
        },
        "DATALOADER": {
            "NUM_WORKERS": 0,
            "TRAIN_X": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 3},
            "TEST": {"BATCH_SIZE": 24},
        },
        "OPTIM": {"NAME": "sgd", "LR": 0.02, "LR_SCHEDULER": "cosine", "MAX_EPOCH": 3},
        "TRAINER": {"NAME": method, method.upper(): {"PREC": "fp32", **OPTIONS[method]}},
        "MODEL": {"BACKBONE": {"NAME": BACKBONE}},
        "OUTPUT_DIR": f"{output}/{method}",
        "USE_CUDA": False,
        "SEED": 1,
    }
    values["OPTIM"] |= {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 1e-3}
    cfg.merge_from_other_cfg(type(cfg)(values))
    cfg.freeze()
    return cfg


def run(data, output, method):
    cfg = config(data, output, method)
    set_random_seed(cfg.SEED)
    trainer, losses = build_trainer(cfg), []
    step = trainer.forward_backward

    def kept(batch):
        losses.append(float((found := step(batch))["loss"]))
        return found

    trainer.forward_backward = kept
    trainer.train()
    last = float(trainer.test())
    trainer.load_model(cfg.OUTPUT_DIR, epoch=3)
    return {"losses": losses, "accuracy": [last, float(trainer.test())]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, output, *methods = sys.argv[1:]
    for method in methods:
        importlib.import_module(f"trainers.{method.lower()}")
    found = {method: run(data, output, method) for method in methods}
    Path(output, "found.json").write_text(json.dumps({"engine": dassl.__file__, **found}))

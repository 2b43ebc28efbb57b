"""A tiny random CLIP in a file, pictures, and models of every method that have learned random numbers."""

from pathlib import Path

import pytest
import torch
from loaded_models import NAMES, SIDE
from PIL import Image

import align_prompt
import clip
from align_prompt.source import find_source
from dassl.data.class_list import ClassList
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.engine.command import known_config
from tests.short_options import tiny_clip
from trainers.base import PromptTrainer
from trainers.parts.inputs import input_options


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    clip.save_model(tiny_clip(SIDE), path)
    return str(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Paths of five pictures of different sizes."""
    folder, draw = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(1)
    paths = []
    for place, size in enumerate([(40, 32), (32, 50), (64, 64), (33, 32), (90, 70)]):
        pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=draw).numpy()
        paths.append(folder / f"{place}.png")
        Image.fromarray(pixels).save(paths[-1])
    return [str(path) for path in paths]


@pytest.fixture
def checkpoint(backbone, tmp_path):
    """checkpoint(method, KEY, VALUE, ...): path of a checkpoint of three classes with random learned parameters."""
    built = {}

    def make(method, *options) -> Path:
        folder = tmp_path / f"{method}{len(built)}"
        cfg = known_config()
        settings = {
            "TRAINER.NAME": method,
            "MODEL.BACKBONE.NAME": backbone,
            "INPUT.TRANSFORMS": ("normalize",),
            **{f"INPUT.{key}": value for key, value in input_options(clip.input_of(backbone)).items()},
            "DATALOADER.TEST.BATCH_SIZE": 4,
            "DATASET.NUM_SHOTS": 1,
            "USE_CUDA": False,
            "OUTPUT_DIR": str(folder),
        }
        cfg.merge_from_list([item for pair in settings.items() for item in pair])
        cfg.merge_from_list(list(options))
        trainer = build_trainer(cfg, ClassList(cfg, NAMES, "a picture of a {}."))
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for value in trainer._models[trainer.get_model_names()[0]].parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=draw))
        trainer.save_model(0, str(folder))
        built[folder] = trainer
        return next(folder.glob("*/model.pth.tar-1"))

    return make


@pytest.fixture
def trained(checkpoint, backbone):
    """trained(method, KEY, VALUE, ...): the model of such a checkpoint, or zero-shot CLIP."""

    def make(method, *options):
        kind = TRAINER_REGISTRY.get(method)
        if not getattr(kind, "by_steps", True) and kind.fit is PromptTrainer.fit:  # learns nothing: no checkpoint
            source = find_source(backbone)
            source.cfg.TRAINER.NAME = method
            return align_prompt.Model(source, NAMES, "cpu")
        return align_prompt.load(checkpoint(method, *options), device="cpu")

    return make

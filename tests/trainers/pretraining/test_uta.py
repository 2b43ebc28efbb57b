"""The trainer of Unmasked Token Alignment: its options and the students it builds."""

import pytest
import torch

import clip
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, add_trainer_defaults
from trainers.pretraining.uta import UTA


def config(**options):
    cfg = get_cfg_default()
    add_trainer_defaults(cfg)
    cfg.INPUT.TRANSFORMS = ("normalize",)
    for key, value in options.items():
        node = cfg.TRAINER.UTA if key in cfg.TRAINER.UTA else cfg.INPUT
        node[key] = value
    return cfg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MASK": "blocks"}, "MASK is 'blocks'.*reversed"),
        ({"MASK_RATIO": 1.0}, r"MASK_RATIO is 1.0, expected a number from 0 below 1"),
        ({"ALIGN": "none", "DROP_PATH": 1.0}, r"(?s)DROP_PATH is 1\.0.*ALIGN is .none"),
        ({"OBJECTIVE": "mask_tokens", "FULL_EPOCHS": 1}, "FULL_EPOCHS 0"),
        ({"CACHE_TEACHER": True, "TRANSFORMS": ("random_flip", "normalize")}, "CACHE_TEACHER.*random_flip"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        UTA.check_cfg(UTA.__new__(UTA), config(**options))
    UTA.check_cfg(UTA.__new__(UTA), config(CACHE_TEACHER=True))


def test_registered():
    assert TRAINER_REGISTRY.get("UTA") is UTA


def builder(**options) -> UTA:
    """A trainer that knows its options and nothing else."""
    trainer = UTA.__new__(UTA)
    trainer.cfg = config(**options)
    return trainer


def test_students_by_numbers_name_and_path(tiny_clip, tmp_path):
    teacher = tiny_clip.visual
    numbers = {"LAYERS": 2, "WIDTH": 128}
    eva = builder(**numbers).build_student(teacher)
    assert (type(eva).__name__, eva.heads, eva.mlp_width, eva.patch_size) == ("EvaVisionTransformer", 2, 341, 8)
    plain = builder(STUDENT="clip", HEADS=4, MLP_WIDTH=96, PATCH_SIZE=16, **numbers).build_student(teacher)
    assert (type(plain).__name__, plain.heads, plain.patch_size) == ("VisionTransformer", 4, 16)
    assert plain.blocks[0].mlp.c_fc.out_features == 96
    with torch.device("meta"):
        base = builder(STUDENT="eva-B/16").build_student(teacher)
    assert (base.width, len(base.blocks), base.input_resolution) == (768, 12, 32)
    clip.save_model(tiny_clip, tmp_path / "tiny.safetensors")
    again = builder(STUDENT=str(tmp_path / "tiny.safetensors")).build_student(teacher)
    assert torch.equal(again.proj, teacher.proj)
    for student in (eva, plain, base, again):
        assert (student.input_resolution, student.output_dim) == (32, 32)


def test_a_mask_of_nothing_is_refused(tiny_clip):
    trainer = builder(STUDENT="clip", LAYERS=1, WIDTH=64, OBJECTIVE="mask_tokens", MASK_RATIO=0.02)
    trainer.load_clip = lambda: tiny_clip
    with pytest.raises(ValueError, match=r"MASK_RATIO is 0.02, which masks none of 16 patches"):
        trainer.build_model()


def test_students_that_do_not_fit(tiny_clip, tmp_path):
    with pytest.raises(ValueError, match="PATCH_SIZE is 7"):
        builder(PATCH_SIZE=7).build_student(tiny_clip.visual)
    other = clip.CLIP(16, 32, 1, 64, 8, 77, 2048, 48, 2, 1)
    clip.save_model(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="32 pixels and gives 16 features, the teacher 32 and 32"):
        builder(STUDENT=str(tmp_path / "other.safetensors")).build_student(tiny_clip.visual)
    resnet = clip.CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 2048, 48, 2, 1)
    clip.save_model(resnet, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match="ResNet"):
        builder(STUDENT=str(tmp_path / "resnet.safetensors")).build_student(tiny_clip.visual)

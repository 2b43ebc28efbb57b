"""Teachers: plain CLIP's features, whatever was adapted, and larger models by name."""

import copy

import pytest
import torch
from plain_towers import image_feature, logits_of, text_feature

import clip
from clip.adapters import LowRank
from trainers.parts.prompted_clip import template_features
from trainers.parts.teacher import Teacher, load_teacher


def test_it_is_plain_clip_after_the_student_is_adapted(tiny_clip, names, images):
    model = copy.deepcopy(tiny_clip)
    teacher = Teacher(model, template_features(model, names, ["a photo of a {}."])[0])
    adapters = model.add_adapters(lambda linear, place: LowRank(linear, 2))
    torch.manual_seed(0)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = [image_feature(tiny_clip, image, []) for image in images]
    torch.testing.assert_close(teacher.image(images), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.encode_image(images).pooled, torch.stack(expected), atol=1e-2)
    assert torch.equal(teacher.image(tokens=model.visual.embed(images)), teacher.image(images))
    ids = clip.tokenize(["a photo of a cat."], vocab_size=model.vocab_size)
    text = [text_feature(tiny_clip, f"a photo of a {name.replace('_', ' ')}.", []) for name in names]
    torch.testing.assert_close(teacher.encode_text(ids)[0], text[0], rtol=1e-4, atol=1e-5)
    feature = images.flatten(1)[:, :32].clone().requires_grad_()
    logits = teacher.logits(feature)
    torch.testing.assert_close(logits, logits_of(tiny_clip, feature, text), rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(logits.sum(), feature)[0].any()  # the student's features learn from it


def test_a_larger_teacher_by_name(tmp_path, names, images):
    torch.manual_seed(0)
    path = str(tmp_path / "large.safetensors")
    clip.save_model(clip.CLIP(48, 32, 2, 64, 8, 77, 2048, 64, 2, 2, vision_heads=2), path)
    teacher = load_teacher(path, names, ["a photo of a {}.", "art of the {}."], 32, dtype=torch.bfloat16)
    assert teacher.text.shape == (len(names), 48)
    assert teacher.text.dtype == torch.float32
    assert teacher.image(images.bfloat16()).shape == (3, 48)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    with pytest.raises(ValueError, match=r"features of the teacher .* have 48 numbers, those of the student 32"):
        load_teacher(path, names, ["{}"], 32, width=32)
    with pytest.raises(ValueError, match=r"takes 32x32 images, the student 64x64"):
        load_teacher(path, names, ["{}"], 64)


def test_class_features_of_another_width(tiny_clip):
    with pytest.raises(ValueError, match=r"have shape \(5, 31\), expected \(C, 32\)"):
        Teacher(tiny_clip, torch.zeros(5, 31))

"""Base of pre-training methods: precision, evaluations during training, classes, the saved file."""

from types import SimpleNamespace

import pytest
import torch

import clip
from dassl.config import get_cfg_default
from dassl.engine import add_trainer_defaults
from trainers.base import CLIPTrainer
from trainers.pretraining.contrastive import ContrastiveCLIP
from trainers.pretraining.uta import UTA


@pytest.fixture(params=[ContrastiveCLIP, UTA])
def trainer(request):
    """A trainer with the default options of its method and nothing else."""
    made = object.__new__(request.param)
    made.cfg, made.device = get_cfg_default(), torch.device("cpu")
    add_trainer_defaults(made.cfg)
    made.cfg.DATASET.NAME = "images"
    return made


def test_weights_that_learn_stay_fp32(trainer):
    trainer.options.PREC = "fp16"
    with pytest.raises(ValueError, match=f"{trainer.node}.PREC is 'fp16', expected one of fp32, amp, bf16, auto"):
        trainer.check_cfg(trainer.cfg)


def test_evaluations_need_test_images(trainer, tiny_clip):
    trainer.options.EVAL_FREQ, trainer.test_loader, trainer.load_clip = 2, None, lambda: tiny_clip
    trainer.cfg.MODEL.BACKBONE.NAME = "tiny"
    with pytest.raises(ValueError, match="EVAL_FREQ is 2, but images has no test images"):
        trainer.build_model()


@pytest.mark.parametrize(("freq", "expected"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (5, [])])
def test_evaluations_during_training(trainer, monkeypatch, freq, expected):
    """After every EVAL_FREQ epochs but the last, after which a run is evaluated anyway."""
    done = []
    monkeypatch.setattr(CLIPTrainer, "after_epoch", lambda self: None)
    monkeypatch.setattr(CLIPTrainer, "test", lambda self, split: done.append((self.epoch + 1, split)))
    trainer.options.EVAL_FREQ, trainer.options.FULL_EPOCHS, trainer.max_epoch = freq, 2, 5
    trainer.eval_split = "val"
    full = []
    for trainer.epoch in range(5):
        full.append(trainer.on_all_patches)
        trainer.after_epoch()
    assert done == [(epoch, "val") for epoch in expected]
    assert full == [False, False, False, True, True]


def test_classes_of_the_data(trainer, tiny_clip, names):
    def data(classnames, long_names=False):
        return SimpleNamespace(dataset=SimpleNamespace(classnames=classnames, long_names=long_names, template="a {}."))

    trainer.dm = data(names)
    words = [f"a {name.replace('_', ' ')}." for name in names]
    with torch.no_grad():
        found = trainer.with_classes(tiny_clip).encode_text().pooled
        expected = tiny_clip.encode_text(clip.tokenize(words, vocab_size=tiny_clip.vocab_size)).pooled
        torch.testing.assert_close(found, expected)
        trainer.dm = data([])
        assert trainer.with_classes(tiny_clip).encode_text().pooled.shape == (0, 32)
        trainer.dm = data(["a cat " * 80], long_names=True)  # a caption, which is cut
        assert trainer.with_classes(tiny_clip).encode_text().pooled.shape == (1, 32)


@pytest.mark.parametrize("dtype", [torch.float16, None])
def test_the_trained_clip_is_written(trainer, tiny_clip, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(CLIPTrainer, "after_train", lambda self: None)
    trainer.model, trainer.output_dir = SimpleNamespace(clip=tiny_clip), str(tmp_path)
    trainer.saved_dtype = dtype
    trainer.after_train()
    found = clip.load(str(tmp_path / "clip.safetensors"))[0].state_dict()
    for name, value in tiny_clip.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-3 if dtype else 0, atol=1e-3 if dtype else 0)

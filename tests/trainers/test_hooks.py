"""Hooks of methods that are not prompts: views of the batch, the time after a step, and evaluation that adapts."""

import pytest
import torch
from yacs.config import CfgNode

import clip
import train
from dassl.engine import TRAINER_REGISTRY
from tests.short_options import short_run
from trainers.base import PromptTrainer
from trainers.parts.prompts import TextContext

SETTINGS = {
    "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
    "DATALOADER.TEST.BATCH_SIZE": 40,
    "INPUT.TRANSFORMS": "('random_resized_crop','normalize')",
    "OPTIM.MAX_EPOCH": 1,
}


class Probe(PromptTrainer):
    """CoOp's context that writes down what its hooks see."""

    node = "PROBE"

    @staticmethod
    def defaults():
        return CfgNode({"PROBE": {"PREC": "bf16"}})

    def build_learner(self, model, classnames):
        self.seen, self.steps, self.adapted = [], 0, []
        return TextContext(model, classnames, 4)

    def extra_losses(self, output, label):
        self.seen.append(torch.stack(self.views_of(self.batch)))
        return {"spread": output.logits.var()}

    def after_step(self):
        self.steps += 1
        assert not torch.is_grad_enabled()
        assert torch.equal(self.views_of(self.batch)[1].cpu(), self.batch["img"][1])


class Adapting(Probe):
    """A step on the entropy of the views' mean prediction for every test image, undone afterwards."""

    adapts = True
    by_steps = False

    def test_precision_name(self):
        return "fp32"

    def adapt(self, views):
        learner = self.model.learner
        before = learner.ctx.detach().clone()
        logits = self.model(views).logits
        mean = logits.softmax(dim=1).mean(dim=0)
        (step,) = torch.autograd.grad(-(mean * mean.log()).sum(), learner.ctx)
        with torch.no_grad():
            learner.ctx -= 0.01 * step
            found = self.model(views[:1]).logits[0]
            learner.ctx.copy_(before)
        self.adapted.append((views, logits.dtype, found))
        return found


@pytest.fixture
def run(tmp_path, few_emoji, pictures_root):
    torch.manual_seed(0)
    clip.save_model(clip.CLIP(32, 64, 2, 64, 16, 77, 2048, 32, 2, 2, vision_heads=2), tmp_path / "tiny.safetensors")
    built = []

    def start(method, output, **options):
        class Kept(method):
            def __init__(self, cfg):
                super().__init__(cfg)
                built.append(self)

        Kept.__name__ = method.__name__
        TRAINER_REGISTRY.register(Kept, force=True)
        flags = ["--trainer", method.__name__, "--seed", "1", "--output-dir", str(tmp_path / output)]
        pairs = short_run(tmp_path, tmp_path / "tiny.safetensors", **{**SETTINGS, **options})
        return train.main(["--root", pictures_root, *flags, *pairs]), built[-1]

    yield start
    for name in ("Probe", "Adapting"):
        TRAINER_REGISTRY._obj_map.pop(name, None)


@pytest.mark.slow
def test_views_and_the_time_after_a_step(run):
    result, trainer = run(Probe, "run", **{"DATALOADER.K_TRANSFORMS": 2, "OPTIM.ACCUMULATE": 2})
    batches = len(trainer.seen)
    assert trainer.steps == (batches + 1) // 2 > 0
    assert all(views.shape[:1] == (2,) and not torch.equal(*views) for views in trainer.seen)
    assert result["precision"] == "bf16"


@pytest.mark.slow
def test_evaluation_that_adapts(run, capsys):
    result, trainer = run(Adapting, "first", **{"TEST.VIEWS": 3})
    assert result["epochs"] == 0  # nothing is trained
    images = result["counts"]["test"]
    assert len(trainer.adapted) == images
    views, kind, _ = trainer.adapted[0]
    assert views.shape == (4, 3, 64, 64)
    assert kind == torch.float32  # not that of the training, bf16
    assert len({float(view.sum()) for view in views}) == 4
    with torch.no_grad():
        unchanged = trainer.model(views[:1]).logits[0]
    assert not torch.allclose(trainer.adapted[0][2], unchanged, atol=1e-4)

    again, other = run(Adapting, "second", **{"TEST.VIEWS": 3, "DATALOADER.TEST.BATCH_SIZE": 7})
    assert again["accuracy"] == result["accuracy"]  # the same views and one image at a time, whatever the batch
    for (one, _, a), (two, _, b) in zip(trainer.adapted, other.adapted, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(a, b)
    with pytest.raises(SystemExit):
        run(Probe, "third", **{"TEST.VIEWS": 3})
    assert "TEST.VIEWS is 3, but Probe looks at a test image once" in capsys.readouterr().err

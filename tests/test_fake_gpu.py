"""Every method on the pretended device of `fake_cuda`, in every precision: devices never mix, and the host never waits.

Evaluations are of the whole trainer, through `test()`; numbers are compared with those of the CPU.
"""

import contextlib
import warnings

import pytest
import torch
from fake_cuda import FakeCuda
from test_trainers import backbone  # noqa: F401

from clip import Encoded
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, build_trainer, command
from dassl.engine.precision import Scaler
from tests.short_options import SHORT, short_run
from trainers import promptsrc

METHODS = sorted(
    name
    for name in TRAINER_REGISTRY.registered_names()
    if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
)
SHORTER = {
    "ContrastiveCLIP": ["DATASET.NAME", "EmojiCaptions", "TRAINER.CONTRASTIVE.EVAL_FREQ", 0, "TEST.NO_TEST", True],
    "CoCoOp": ["TRAINER.COCOOP.CHUNK_ROWS", 100],
}
pytestmark = pytest.mark.slow


class RealCuda:
    """The device itself; torch says where the host waited."""

    def __enter__(self):
        torch.cuda.set_sync_debug_mode("warn")
        self.caught = warnings.catch_warnings(record=True)
        self.waits = self.caught.__enter__()
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=".*synchroniz")
        return self

    def __exit__(self, *exc):
        self.caught.__exit__(*exc)
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=[FakeCuda, pytest.param(RealCuda, marks=pytest.mark.gpu)], ids=["pretended", "cuda"])
def gpu(request):
    with request.param() as device:
        yield device


@pytest.fixture(scope="module")
def data():
    """Loaders that trainers share, by data set."""
    return {}


@pytest.fixture
def make(few_emoji, pictures_root, backbone, data, tmp_path, monkeypatch):  # noqa: F811
    """Builds a trainer of few images."""
    build_data = SimpleTrainer.build_data_loader

    def load(self):
        known = data.setdefault((type(self).build_data_loader, self.cfg.DATASET.NAME), {})
        if not known:
            before = set(vars(self))
            build_data(self)
            known.update({name: value for name, value in vars(self).items() if name not in before})
        vars(self).update(known)

    monkeypatch.setattr(SimpleTrainer, "build_data_loader", load)
    monkeypatch.setattr(promptsrc, "TEACHER_TEMPLATES", promptsrc.TEACHER_TEMPLATES[:4])

    def build(method, precision, *options):
        own = {
            "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
            "DATALOADER.TEST.BATCH_SIZE": 5,
            f"TRAINER.{TRAINER_REGISTRY.get(method).node}.PREC": precision,
        }
        flags = ["--root", pictures_root, "--trainer", method, "--output-dir", str(tmp_path), "--seed", "1"]
        flags += short_run(tmp_path, backbone, **own)
        flags += map(
            str, [*SHORT.get(method, []), *SHORTER.get(method, []), "DATASET.SUBSAMPLE_CLASSES", "1/3", *options]
        )
        return build_trainer(command.build_config(command.build_parser().parse_args(flags)))

    return build


def take_steps(trainer, batch, count):
    """Report of the steps."""
    trainer.set_model_mode("train")
    trainer.num_batches = 10**9  # no epoch ends here
    found = []
    for trainer.batch_idx in range(count):
        found.append(trainer.forward_backward(batch))
    return found


def test_an_epoch_is_that_of_the_cpu(make):
    """Batches are prefetched: the same ones in the same order, with the same loss, and the loader ends alike."""
    seen = []
    for device in (FakeCuda, contextlib.nullcontext):
        with device():
            torch.manual_seed(0)
            trainer = make("CoOp", "fp32")
            step, found = trainer.forward_backward, []

            def kept(batch, kind=trainer.device.type, step=step, found=found):
                assert batch["img"].device.type == kind
                found.append((batch["label"].tolist(), step(batch)["loss"]))
                return {"loss": found[-1][1]}

            trainer.forward_backward = kept
            trainer.train_loader_x.order_generator.manual_seed(3)
            trainer.epoch = 0
            trainer.run_epoch()
            seen.append((found, trainer.train_loader_x.state_dict()))
    (ours, state), (theirs, other) = seen
    assert [labels for labels, _ in ours] == [labels for labels, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-4)
    assert torch.equal(state["generator"], other["generator"])
    assert state["batches"] == other["batches"] == 0


@pytest.mark.parametrize("precision", ["amp", "fp16", "bf16"])
@pytest.mark.parametrize("method", ["ALIGN", "PLOT", "CoOp"])
def test_losses_and_transport_are_float32(method, precision, make, gpu):
    """Whatever the towers compute in: features are compared as outside of autocast, from the same numbers."""
    trainer = make(method, precision)
    score, calls = trainer.model.score, []

    def spy(image, text, scale):
        calls.append((image, text, scale, score(image, text, scale)))
        return calls[-1][-1]

    trainer.model.score = spy
    trainer.set_model_mode("train")
    with trainer.precision.autocast():
        terms = trainer.losses(next(iter(trainer.train_loader_x)))
    assert {term.dtype for term in terms.values()} == {torch.float32}
    image, text, scale, found = calls[0]
    assert image.pooled.dtype == trainer.precision.autocast_dtype
    if method != "CoOp":
        whole = (Encoded(*(x.detach().float() for x in side)) for side in (image, text))
        expected = score(*whole, scale.detach().float())
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


CASES = [(method, precision) for method in METHODS for precision in ("fp32", "amp", "fp16", "bf16")]
CASES = [case for case in CASES if case not in {("UTA", "fp16"), ("ContrastiveCLIP", "fp16")}]  # weights learn in fp32


@pytest.mark.parametrize(("method", "precision"), CASES)
def test_a_step_and_an_evaluation(method, precision, make, gpu):
    trainer = make(method, precision)
    assert trainer.device.type == "cuda"
    if trainer.precision.scaler is not None:
        trainer.precision.scaler = Scaler("cuda", init_scale=1.0)  # small enough for the first step
    if trainer.max_epoch > 0 and getattr(trainer, "by_steps", True):
        batch = next(iter(trainer.train_loader_x))
        take_steps(trainer, batch, 1)  # reads once what stays the same
        gpu.waits.clear()
        take_steps(trainer, batch, 1)
        assert len(gpu.waits) <= 1, "\n".join(map(str, gpu.waits))
    if trainer.cfg.TEST.NO_TEST:
        return
    read = trainer.evaluator._read
    found = []
    trainer.evaluator._read = lambda: found.append(list(gpu.waits)) or read()
    trainer.before_inference()  # encodes the classes, and reads once how their sentences are laid out
    if trainer.model.learner.conditional:  # the same for every size of a batch
        trainer.test("test")
        found.clear()
    gpu.waits.clear()
    trainer.test("test")
    assert found[0] == [], "\n".join(map(str, found[0]))

"""TDA against lists of Python that are kept image by image, in both kinds of caches; the order of an evaluation."""

import math

import pytest
import torch
from plain_towers import trainer_of
from support_sets import class_feature, unit

from tests.tolerance import assert_close
from trainers.parts.views import Queue
from trainers.test_time import tda
from trainers.test_time.tda import TDA

POSITIVE = {"POSITIVE": 2, "NEGATIVE": 0}
NEGATIVE = {"POSITIVE": 0, "NEGATIVE": 2, "ENTROPY": (0.1, 0.69), "MASK": (0.21, 1.0)}
BOTH = {**NEGATIVE, "POSITIVE": 2}


@pytest.fixture
def build(tiny_clip, names):
    def make(**options):
        trainer = trainer_of(TDA, tiny_clip, names, **options)
        trainer.text = trainer.model.encode_text()
        sizes = trainer.options.POSITIVE, trainer.options.NEGATIVE
        trainer.queues = [Queue(5, size, 32, torch.device("cpu")) for size in sizes]
        return trainer

    return make


def plain_run(model, names, images, own, count=1):
    """Logits (C,) of images (V, 3, H, W), one after the other; caches are lists of (entropy, feature, value)."""
    text, classes = [class_feature(model, name) for name in names], len(names)
    caches, rows, kept = ({}, {}), [], []
    for views in images:
        features = [unit(model.encode_image(view[None]).pooled[0]) for view in views]
        logits = [torch.stack([model.logit_scale.exp() * f @ t for t in text]) for f in features]
        shares = [row.exp() / row.exp().sum() for row in logits]
        sure = sorted(range(len(views)), key=lambda k: float(-(shares[k] * shares[k].log()).sum()))[:count]
        feature = sum(features[k] for k in sure) / count
        row, share = sum(logits[k] for k in sure) / count, sum(shares[k] for k in sure) / count
        doubt, label = float(-(share * share.log()).sum()), int(row.argmax())
        low, high = own.get("ENTROPY", (0, 0))
        speaks, most = own.get("MASK", (0, 0))
        values = [float(k == label) for k in range(classes)], [float(speaks < float(p) < most) for p in share]
        fits = True, low < doubt / math.log2(classes) < high
        for cache, size, value, taken in zip(caches, (own["POSITIVE"], own["NEGATIVE"]), values, fits):
            if size and taken:
                queue = cache.setdefault(label, [])
                queue.append((doubt, feature, value))
                queue.sort(key=lambda one: one[0])
                del queue[size:]
        for cache, alpha, beta in zip(caches, (2.0, -0.117), (5.0, 1.0)):
            for _, key, value in (one for queue in cache.values() for one in queue):
                row = row + alpha * math.exp(-beta * (1 - float(feature @ key))) * torch.tensor(value)
        rows.append(row)
        kept.append([sum(map(len, cache.values())) for cache in caches])
    return torch.stack(rows), kept


@pytest.fixture
def stream(rng):
    """Twenty images of three kinds, one view each."""
    base = torch.randn(3, 3, 32, 32, generator=rng)
    kind = torch.randint(3, (20,), generator=rng)
    return (base[kind] + 0.7 * torch.randn(20, 3, 32, 32, generator=rng))[:, None]


@pytest.mark.parametrize("own", [POSITIVE, NEGATIVE, BOTH], ids=["positive", "negative", "both"])
def test_logits_of_a_stream(build, tiny_clip, names, stream, own):
    trainer = build(**own)
    found = torch.stack([trainer.adapt(views) for views in stream])
    expected, kept = plain_run(tiny_clip, names, stream, own)
    assert_close(found, expected, 2e-5)
    plain = torch.stack([trainer.model(views).logits[0] for views in stream])
    assert float((expected - plain).abs().max()) > 1e-2  # the caches matter
    if own["POSITIVE"]:
        assert kept[-1][0] < 20  # full queues let images go
    if own["NEGATIVE"]:
        assert 0 < kept[-1][1] < 20  # some images are doubtful
    assert [int(queue.entropy.isfinite().sum()) for queue in trainer.queues] == kept[-1]


def test_views_of_an_image(build, tiny_clip, names, rng):
    images = torch.randn(4, 12, 3, 32, 32, generator=rng)
    trainer = build(**BOTH, SELECT=0.25)
    found = torch.stack([trainer.adapt(views) for views in images])
    expected, _ = plain_run(tiny_clip, names, images, BOTH, count=3)
    assert_close(found, expected, 2e-5)


def test_the_queue_keeps_the_lowest_entropies(rng):
    queue = Queue(3, 2, 4, torch.device("cpu"))
    keys, label, yes = torch.randn(5, 4, generator=rng), torch.tensor(1), torch.tensor(True)
    for key, entropy in zip(keys, (0.5, 0.9, 0.7, 0.8, 0.1)):
        queue.put(label, key, torch.eye(3)[1], torch.tensor(entropy), yes)
    assert sorted(queue.entropy[1].tolist()) == pytest.approx([0.1, 0.5])
    assert not queue.entropy[[0, 2]].isfinite().any()
    queue.put(label, keys[0], torch.eye(3)[1], torch.tensor(0.0), torch.tensor(False))
    assert sorted(queue.entropy[1].tolist()) == pytest.approx([0.1, 0.5])


def test_an_evaluation_starts_with_empty_caches_in_a_random_order(build, stream, monkeypatch):
    trainer = build()
    for views in stream[:4]:
        trainer.adapt(views)
    monkeypatch.setattr(tda.PromptTrainer, "before_inference", lambda self: None)
    trainer.before_inference()
    assert not any(queue.entropy.isfinite().any() for queue in trainer.queues)

    class Wrapper:
        data_source, transform = list("abcdefgh"), "t"

    class Loader:
        batch_size = 4
        dataset = type("Seeded", (), {"dataset": Wrapper})

    calls = []
    monkeypatch.setattr(tda, "build_data_loader", lambda cfg, **more: calls.append(more))
    trainer.cfg.SEED = 3
    for _ in range(2):
        trainer.evaluation_batches(Loader())
    assert calls[0] == calls[1]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).tolist()
    assert calls[0]["data_source"] == ["abcdefgh"[k] for k in order] != list("abcdefgh")
    assert (calls[0]["tfm"], calls[0]["batch_size"], calls[0]["is_train"]) == ("t", 4, False)
    loader = Loader()
    assert build(ORDER="given").evaluation_batches(loader) is loader


def test_bad_options(build):
    with pytest.raises(ValueError, match=r"(?s)POSITIVE is -1.*BETA is 0.*ENTROPY is \(0.2,\).*ORDER is 'sorted'"):
        build(POSITIVE=-1, BETA=0.0, ENTROPY=(0.2,), ORDER="sorted")
    with pytest.raises(ValueError, match=r"ENTROPY is \(0.5, 0.2\), expected two numbers, the first below the second"):
        build(ENTROPY=(0.5, 0.2))

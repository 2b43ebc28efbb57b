"""Evaluators of a test set."""

import logging
import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, top_k_accuracy_score

from dassl.config import get_cfg_default
from dassl.data.loader import SeededLoader
from dassl.data.samplers import RandomSampler, SequentialSampler
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl.utils import distributed, read_json, write_json

NAMES = {label: f"class {label}" for label in range(9)}


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def outputs(rng, n=300, classes=9, absent=(4,)):
    """Logits that are often right, and labels without the classes `absent`."""
    allowed = torch.tensor([label for label in range(classes) if label not in absent])
    labels = allowed[torch.randint(len(allowed), (n,), generator=rng)]
    logits = torch.randn(n, classes, generator=rng)
    logits[torch.arange(n), labels] += 1.5
    return logits, labels


def evaluated(cfg, logits, labels, batch=64, **options):
    evaluator = Classification(cfg, **options)
    for start in range(0, len(labels), batch):
        evaluator.process(logits[start : start + batch], labels[start : start + batch])
    return evaluator, evaluator.evaluate()


def test_against_scikit_learn(cfg, rng):
    logits, labels = outputs(rng)
    predicted = logits.argmax(1)
    evaluator, results = evaluated(cfg, logits, labels, lab2cname=NAMES)
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * accuracy_score(labels, predicted))
    assert results["error_rate"] == pytest.approx(100 - results["accuracy"])
    f1 = f1_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert results["macro_f1"] == pytest.approx(100 * f1)
    assert results["macro_f1"] != pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    summary = evaluator.summary()
    assert summary["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=range(9)))
    assert (summary["total"], summary["correct"]) == (300, int((labels == predicted).sum()))


def test_calibration_against_a_loop(cfg, rng):
    logits, labels = outputs(rng)
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            right = (predicted == labels)[inside].double().mean()
            expected += inside.sum().item() / len(labels) * abs(right - confidence[inside].mean()).item()
    evaluator, _ = evaluated(cfg, logits, labels)
    assert evaluator.summary()["ece"] == pytest.approx(100 * expected, abs=1e-4)
    assert expected > 0.01


def test_calibration_by_hand(cfg):
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.4, 0.6]]))
    evaluator, _ = evaluated(cfg, logits, torch.tensor([0, 0, 1, 1]))
    # bin of 0.8: 3 items, accuracy 2/3; bin of 0.6: 1 item, accuracy 1
    assert evaluator.summary()["ece"] == pytest.approx(100 * (0.75 * (0.8 - 2 / 3) + 0.25 * 0.4), abs=1e-4)
    certain, _ = evaluated(cfg, torch.tensor([[100.0, 0.0]]), torch.tensor([0]))
    assert certain.summary()["ece"] == pytest.approx(0, abs=1e-6)


def test_printed_block(cfg, caplog):
    labels = torch.zeros(2465, dtype=torch.long)
    logits = torch.tensor([[1.0, 0.0]]).repeat(2465, 1)
    logits[:165] = torch.tensor([0.0, 1.0])
    with caplog.at_level(logging.INFO):
        evaluated(cfg, logits, labels, batch=1000)
    block = "=> result\n* total: 2,465\n* correct: 2,300\n* accuracy: 93.3%\n* error: 6.7%\n* macro_f1: 96.5%"
    assert [record.message for record in caplog.records] == [block]


def test_per_class_results(cfg, caplog):
    cfg.TEST.PER_CLASS_RESULT = True
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    with caplog.at_level(logging.INFO):
        evaluator, results = evaluated(
            cfg, logits, torch.tensor([0, 2, 1, 2]), lab2cname={0: "missile", 1: "cat", 2: "missile"}
        )
    assert caplog.records[-1].message == (
        "=> per-class result\n"
        "* class: 0 (missile)\ttotal: 1\tcorrect: 1\tacc: 100.0%\n"
        "* class: 1 (cat)\ttotal: 1\tcorrect: 1\tacc: 100.0%\n"
        "* class: 2 (missile)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n"
        "* average: 83.3%"
    )
    assert results["perclass_accuracy"] == pytest.approx(250 / 3)
    assert evaluator.summary()["per_class"] == {
        "missile (label 0)": {"label": 0, "total": 1, "correct": 1, "accuracy": 100.0},
        "cat": {"label": 1, "total": 1, "correct": 1, "accuracy": 100.0},
        "missile (label 2)": {"label": 2, "total": 2, "correct": 1, "accuracy": 50.0},
    }
    with pytest.raises(ValueError, match="needs the class names"):
        Classification(cfg)


def test_confusion_matrix(cfg, rng, caplog, tmp_path):
    cfg.TEST.COMPUTE_CMAT = True
    logits, labels = outputs(rng)
    with caplog.at_level(logging.INFO):
        evaluated(cfg, logits, labels, lab2cname=NAMES)
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(9), normalize="true")
    assert torch.allclose(matrix, torch.tensor(expected))
    assert "Confusion matrix is saved to" in caplog.text


def test_reset_and_summary_order(cfg, rng):
    logits, labels = outputs(rng)
    evaluator, first = evaluated(cfg, logits, labels)
    evaluator.reset()
    with pytest.raises(ValueError, match="evaluate"):
        evaluator.summary()
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluator.evaluate()
    evaluator.process(logits, labels)
    assert evaluator.evaluate() == first


def test_few_classes(cfg):
    evaluator, results = evaluated(cfg, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert evaluator.summary()["top5"] == 100.0
    assert results["accuracy"] == 50.0


def test_half_precision_logits(cfg, rng):
    logits, labels = outputs(rng)
    _, results = evaluated(cfg, logits.half(), labels.int())
    assert results["accuracy"] == pytest.approx(evaluated(cfg, logits.half().float(), labels)[1]["accuracy"])


def test_faults(cfg):
    evaluator = Classification(cfg)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3,\)"):
        evaluator.process(torch.zeros(2, 3), torch.zeros(3))
    logits = torch.zeros(4, 3)
    logits[1, 2] = float("nan")
    with pytest.raises(ValueError, match="logits of 1 of 4 images are NaN"):
        evaluator.process(logits, torch.zeros(4))


def test_build_evaluator(cfg, caplog):
    with caplog.at_level(logging.INFO):
        assert isinstance(build_evaluator(cfg, lab2cname=NAMES), Classification)
    assert "Loading evaluator: Classification" in caplog.text
    assert issubclass(Classification, EvaluatorBase)
    assert "Classification" in EVALUATOR_REGISTRY.registered_names()
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(ValueError, match=r"is 'Clasification' \(do you mean Classification\?\)"):
        build_evaluator(cfg)


def measure(folder, rank, world, port):
    """One process of a run: evaluate and train on its share, write what came out."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    distributed.init_distributed(use_cuda=False)
    logits, labels = outputs(torch.Generator().manual_seed(0), n=101)
    evaluator = Classification(get_cfg_default())
    for index in SeededLoader(range(101), SequentialSampler(range(101)), 10):
        evaluator.process(logits[index], labels[index])
    results = dict(evaluator.evaluate())
    train = SeededLoader(range(101), RandomSampler(range(101)), 10, torch.Generator().manual_seed(3), True)
    order = [batch.tolist() for batch in train]
    write_json([results, evaluator.summary(), order], folder / f"{world}-{rank}.json")
    distributed.shutdown_distributed()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    for world in (1, 2):
        processes = [fork.Process(target=measure, args=(tmp_path, rank, world, port)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=120)
        assert [process.exitcode for process in processes] == [0] * world
    alone, *both = [read_json(tmp_path / f"{name}.json") for name in ("1-0", "2-0", "2-1")]
    assert both[0][:2] == both[1][:2]
    assert both[0][0] == alone[0]
    for key, value in alone[1].items():
        assert both[0][1][key] == (pytest.approx(value) if key == "ece" else value)
    whole = [index for batch in alone[2] for index in batch]
    for rank, (_, _, order) in enumerate(both):
        assert [len(batch) for batch in order] == [10] * 5
        share = [index for batch in order for index in batch]
        assert share == whole[rank::2][:50]

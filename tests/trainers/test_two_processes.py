"""Every method in two processes: the loss and the gradients of one process with the batches of both."""

import multiprocessing
import socket

import pytest
import torch
from two_trainers import methods, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Results of the two processes, for every method."""
    folder = tmp_path_factory.mktemp("both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["two_trainers"])
    both = [context.Process(target=start, args=(rank, port, str(folder))) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], (folder / "out.txt").read_text()[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("method", methods())
def test_loss_and_gradients_are_those_of_the_whole_batch(reports, method):
    for found in (report[method] for report in reports):
        assert found["parameters"] > 0
        assert found["loss"] < 1e-5
        assert found["gradient"] < 1e-4
        assert found["logits"] < 1e-5
        assert found["seen"] == [0, 1, 2, 3, 4]  # every test image once, though one process has more


def test_methods_that_learn_by_steps_are_all_there():
    assert {"ALIGN", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "LAMM", "PLOT"} <= set(methods())

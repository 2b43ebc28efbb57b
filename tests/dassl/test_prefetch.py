"""Batches on their way to a pretended GPU."""

import pytest
import torch
from fake_cuda import CudaTensor, FakeCuda

from dassl.data.prefetch import prefetched

DEVICE = torch.device("cuda", 0)


def batches(log, number=4):
    for k in range(number):
        log.append(f"read {k}")
        yield {"img": [torch.full((2, 3), float(k))], "label": torch.tensor([k]), "impath": [f"{k}.png"], "img2": None}


def test_order_and_values_one_batch_ahead():
    log = []
    with FakeCuda() as gpu:
        for k, batch in enumerate(prefetched(batches(log), DEVICE)):
            log.append(f"take {k}")
            (image,) = batch["img"]
            assert isinstance(image, CudaTensor)
            assert not isinstance(batch["label"], CudaTensor)
            assert (batch["label"].item(), batch["impath"], batch["img2"]) == (k, [f"{k}.png"], None)
            assert image.recorded == [gpu.stream]  # its memory is not given away while the computation needs it
            assert (image + 1).host.eq(k + 1).all()
        assert gpu.waits == []
    expected = ["read 0", "read 1", "take 0", "read 2", "take 1", "read 3", "take 2", "take 3"]
    assert log == expected


def test_a_batch_that_nobody_waited_for_is_found():
    with FakeCuda():
        copies = torch.cuda.Stream(DEVICE)
        with torch.cuda.stream(copies):
            image = torch.ones(2, 3).to(DEVICE, non_blocking=True)
            event = copies.record_event()
            later = torch.ones(2, 3).to(DEVICE, non_blocking=True)
        with pytest.raises(RuntimeError, match="another stream"):
            image + 1
        torch.cuda.current_stream(DEVICE).wait_event(event)
        assert (image + 1).host.eq(2).all()
        with pytest.raises(RuntimeError, match="another stream"):
            later + 1


def test_no_batches_and_a_cpu():
    log = []
    with FakeCuda():
        assert list(prefetched(iter(()), DEVICE)) == []
    found = iter(prefetched(batches(log), torch.device("cpu")))
    assert type(next(found)["img"][0]) is torch.Tensor
    assert log == ["read 0"]

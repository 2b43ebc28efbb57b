"""Orders of items."""

from collections import Counter

import pytest
import torch
from torch.utils.data import RandomSampler as TorchRandomSampler

from dassl.data.datasets import Datum
from dassl.data.samplers import build_sampler


def items(counts, attribute="label"):
    """`counts[key]` items for each key, interleaved."""
    left = dict(counts)
    out = []
    while any(left.values()):
        for key in left:
            if left[key]:
                left[key] -= 1
                out.append(Datum(f"{key}_{left[key]}", **{attribute: key}))
    return out


def test_random_sampler_is_torchs_permutation():
    data = items({0: 50})
    sampler = build_sampler("RandomSampler", data_source=data)
    torch.manual_seed(3)
    expected = list(TorchRandomSampler(data))
    torch.manual_seed(3)
    assert list(sampler) == expected
    assert sampler.order(1) == sampler.order(1) != sampler.order(2)
    assert sorted(sampler.order(7)) == list(range(50))


def test_sequential_sampler():
    sampler = build_sampler("SequentialSampler", data_source=items({0: 4}))
    assert sampler.order(1) == sampler.order(2) == [0, 1, 2, 3]
    assert len(sampler) == 4


@pytest.mark.parametrize("n_domain", [0, 2, 3])
def test_random_domain_sampler(n_domain):
    data = items({0: 31, 1: 12, 2: 20}, "domain")
    sampler = build_sampler("RandomDomainSampler", data_source=data, batch_size=6, n_domain=n_domain)
    per_batch = n_domain or 3
    for seed in range(5):
        order = sampler.order(seed)
        assert len(order) == len(sampler)
        assert len(set(order)) == len(order)
        for start in range(0, len(order), 6):
            counts = Counter(data[index].domain for index in order[start : start + 6])
            assert len(counts) == per_batch
            assert set(counts.values()) == {6 // per_batch}
    assert sampler.order(0) != sampler.order(1)
    # all three domains: as many batches as the smallest has pairs; two of them: every item of the two smaller is used
    assert len(sampler) == {0: 36, 3: 36, 2: 60}[n_domain]


def test_seq_domain_sampler():
    data = items({0: 7, 1: 9}, "domain")
    sampler = build_sampler("SeqDomainSampler", data_source=data, batch_size=3)
    order = sampler.order(0)
    assert len(order) == len(sampler) == len(set(order)) == 12
    assert [data[index].domain for index in order] == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3


def test_random_class_sampler():
    data = items({0: 8, 1: 9, 2: 2, 3: 5})
    sampler = build_sampler("RandomClassSampler", data_source=data, batch_size=8, n_ins=4)
    for seed in range(5):
        order = sampler.order(seed)
        assert len(order) == len(sampler) == 24
        for start in range(0, len(order), 8):
            counts = Counter(data[index].label for index in order[start : start + 8])
            assert sorted(counts.values()) == [4, 4]
    assert sampler.order(0) != sampler.order(1)


def test_faults():
    data = items({0: 4, 1: 4}, "domain")
    with pytest.raises(ValueError, match="Unknown sampler type: Random, expected one of RandomSampler"):
        build_sampler("Random", data_source=data)
    for name in ("RandomSampler", "SequentialSampler"):
        with pytest.raises(ValueError, match="no items"):
            build_sampler(name, data_source=[])
    for n_domain, batch_size in ((3, 6), (2, 5)):
        with pytest.raises(ValueError, match=f"N_DOMAIN is {n_domain}"):
            build_sampler("RandomDomainSampler", data_source=data, batch_size=batch_size, n_domain=n_domain)
    for n_ins, batch_size in ((3, 8), (4, 8), (0, 8)):
        with pytest.raises(ValueError, match=f"N_INS is {n_ins}"):
            build_sampler("RandomClassSampler", data_source=data, batch_size=batch_size, n_ins=n_ins)

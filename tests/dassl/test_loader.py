"""Order and augmentation depend on the seed and the epoch alone."""

import contextlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import RandomSampler as TorchRandomSampler

from dassl.data.loader import SeededLoader
from dassl.data.samplers import RandomSampler, SequentialSampler
from dassl.data.seeding import draw_int64, item_seed, kept_generators, loader_seed, seed_generators
from dassl.utils import distributed

CASES = json.loads((Path(__file__).parents[1] / "golden" / "loader_order.json").read_text())["cases"]


class Noisy(Dataset):
    """Index and one draw of each generator, as an augmentation would use them."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"index": index, "noise": (torch.rand(()).item(), random.random(), float(np.random.rand()))}


def train_loader(length, batch_size, seed=1, num_workers=0, data=None, persistent=True):
    data = Noisy(length) if data is None else data
    generator = torch.Generator().manual_seed(seed)
    drop_last = length >= batch_size
    sampler = RandomSampler(data)
    return SeededLoader(data, sampler, batch_size, generator, drop_last, num_workers, persistent_workers=persistent)


def eval_loader(length, num_workers=0):
    data = Noisy(length)
    return SeededLoader(data, SequentialSampler(data), 4, num_workers=num_workers, persistent_workers=True)


def order(loader):
    return [index for batch in loader for index in batch["index"].tolist()]


def content(loader):
    return [(batch["index"].tolist(), [noise.tolist() for noise in batch["noise"]]) for batch in loader]


@pytest.mark.parametrize(
    ("case", "num_workers"),
    [
        *((case, 0) for case in CASES),
        *(pytest.param(case, 2, marks=pytest.mark.slow) for case in CASES if case["seed"] == 1),
    ],
)
def test_order_of_the_original_without_evaluation(case, num_workers):
    torch.manual_seed(12345)
    random.seed(1)
    before = torch.get_rng_state()
    loader = train_loader(case["n"], case["batch_size"], case["seed"], num_workers)
    got = []
    for _ in case["no_eval"]:
        got.append(order(loader))
        order(eval_loader(8, num_workers))
        torch.rand(3)  # the model draws
    assert got == case["no_eval"]
    torch.set_rng_state(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"n{case['n']}-seed{case['seed']}")
def test_the_original_with_evaluation_differs_by_one_draw(case):
    """The golden 'with_eval' is the defect that is not reproduced: one more draw after every epoch."""
    generator = torch.Generator().manual_seed(case["seed"])
    data = Noisy(case["n"])
    for expected in case["with_eval"]:
        loader = SeededLoader(data, RandomSampler(data), case["batch_size"], generator, case["n"] >= case["batch_size"])
        assert order(loader) == expected
        draw_int64(generator)
    assert case["with_eval"][0] == case["no_eval"][0]
    assert case["with_eval"][1:] != case["no_eval"][1:]


def test_same_order_as_a_plain_torch_loader():
    data = Noisy(30)
    torch.manual_seed(9)
    plain = DataLoader(data, batch_size=7, sampler=TorchRandomSampler(data), drop_last=True, num_workers=1)
    own = train_loader(30, 7, seed=9)
    for _ in range(2):
        assert order(plain) == order(own)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    order(train_loader(9, 3))
    order(eval_loader(9))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.slow
def test_augmentation_does_not_depend_on_workers():
    loaders = [train_loader(13, 4, seed=5, num_workers=workers) for workers in (0, 1, 2)]
    for _ in range(2):
        first, *others = [content(loader) for loader in loaders]
        assert all(other == first for other in others)


class Worker(Noisy):
    """The process that made an item, beside it."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "pid": os.getpid()}


@pytest.mark.slow
def test_workers_that_live_on_change_nothing():
    loaders = [train_loader(13, 4, 5, workers, Worker(13), alive) for workers, alive in ((0, 0), (2, 1), (2, 0))]
    plain, alive, fresh = (
        [
            [(batch["index"].tolist(), [noise.tolist() for noise in batch["noise"]]) for batch in loader]
            for _ in range(3)
        ]
        for loader in loaders
    )
    assert alive == plain == fresh
    pids = [{pid for _ in range(2) for batch in loader for pid in batch["pid"].tolist()} for loader in loaders]
    assert [len(found) for found in pids] == [1, 2, 4]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_passes_that_begin_within_another_one(num_workers):
    whole = train_loader(11, 2, seed=5)
    first, second, third, fourth = (content(whole) for _ in range(4))
    loader = train_loader(11, 2, seed=5, num_workers=num_workers)
    one = iter(loader)
    two = iter(loader)  # before the first batch of the other one
    assert content([next(one)]) == first[:1]
    assert content([next(two)]) == second[:1]
    assert content(loader) == third
    assert content(one) == first[1:]
    assert content(two) == second[1:]
    assert next(one, None) is None
    assert content(loader) == fourth


@pytest.mark.slow
def test_a_pass_that_is_left():
    whole = train_loader(12, 2, seed=5)
    expected = [content(whole) for _ in range(2)]
    loader = train_loader(12, 2, seed=5, num_workers=2)
    next(iter(loader))  # four batches more are on their way
    assert content(loader) == expected[1]


@pytest.mark.slow
def test_workers_that_live_on_after_a_fault():
    class Broken(Noisy):
        def __getitem__(self, index):
            if index == 4:
                raise ValueError("cannot decode the image x.jpg")
            return super().__getitem__(index)

    loader = SeededLoader(Broken(6), SequentialSampler(Broken(6)), 2, num_workers=2, persistent_workers=True)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"x\.jpg"):
            list(loader)


def test_augmentation_changes_with_item_epoch_and_seed():
    loader = train_loader(8, 4, seed=5)
    one, two = content(loader), content(loader)
    other = content(train_loader(8, 4, seed=6))
    draws = [value for epoch in (one, two, other) for _, noise in epoch for column in noise for value in column]
    assert len(set(draws)) == len(draws) == 3 * 8 * 3


def test_evaluation_is_the_same_at_every_pass():
    loader = eval_loader(9)
    assert content(loader) == content(loader)
    assert order(loader) == list(range(9))


def test_evaluation_with_a_random_transform_depends_on_its_seed():
    loaders = [SeededLoader(Noisy(9), SequentialSampler(range(9)), 4, seed=seed) for seed in (3, 4)]
    one, other = (content(loader) for loader in loaders)
    assert content(loaders[0]) == one
    assert one != other
    assert order(loaders[1]) == list(range(9))


def test_resume_between_epochs():
    whole = train_loader(11, 3)
    epochs = [content(whole) for _ in range(4)]
    stopped = train_loader(11, 3)
    for _ in range(2):
        content(stopped)
    state = stopped.state_dict()
    resumed = train_loader(11, 3, seed=999)
    resumed.load_state_dict(state)
    assert [content(resumed) for _ in range(2)] == epochs[2:]


@pytest.mark.parametrize("done", [0, 1, 3])
def test_resume_within_an_epoch(tmp_path, done):
    whole = train_loader(11, 3)
    epochs = [content(whole) for _ in range(3)]
    stopped = train_loader(11, 3)
    content(stopped)
    batches = iter(stopped)
    for _ in range(done):
        next(batches)
    torch.save(stopped.state_dict(batches_done=done), tmp_path / "state")
    resumed = train_loader(11, 3, seed=999)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert len(resumed) == 3
    assert content(resumed) == epochs[1][done:]
    assert content(resumed) == epochs[2]


def test_skip_and_state_faults():
    loader = train_loader(11, 3)
    with pytest.raises(ValueError, match="cannot skip 4 batches of 3"):
        loader.skip(4)
    with pytest.raises(ValueError, match="generator and batches"):
        loader.load_state_dict({})
    evaluation = eval_loader(5)
    assert evaluation.state_dict() == {}
    evaluation.load_state_dict({})
    with pytest.raises(ValueError, match="no state"):
        evaluation.load_state_dict(loader.state_dict())


def test_short_training_set_gives_one_short_batch():
    loader = train_loader(5, 8)
    assert len(loader) == 1
    assert sorted(order(loader)) == [0, 1, 2, 3, 4]


def test_remainder_is_dropped_and_differs_per_epoch():
    loader = train_loader(10, 4)
    assert len(loader) == 2
    dropped = [frozenset(range(10)) - frozenset(order(loader)) for _ in range(6)]
    assert {len(left) for left in dropped} == {2}
    assert len(set(dropped)) > 1


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_fault_of_an_item_keeps_its_message(num_workers, kind):
    class Broken(Noisy):
        def __getitem__(self, index):
            if index == 4:
                raise kind("cannot decode the image x.jpg")
            return super().__getitem__(index)

    loader = SeededLoader(Broken(6), SequentialSampler(Broken(6)), 2, num_workers=num_workers)
    batches = iter(loader)
    assert [next(batches)["index"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(kind) as caught:
        next(batches)
    assert str(caught.value) == "cannot decode the image x.jpg"


def test_dataset_is_reachable_through_the_loader():
    loader = train_loader(5, 2)
    assert len(loader.dataset) == 5
    assert loader.dataset[3]["index"] == 3
    assert loader.dataset.length == 5
    assert loader.batch_size == 2


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_one_order(monkeypatch, world):
    whole = order(train_loader(17, 17))
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    shares, noises, tests = [], [], []
    for rank in range(world):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        loader = train_loader(17, 2)
        batches = content(loader)
        shares.append([index for indices, _ in batches for index in indices])
        noises.extend(value for _, noise in batches for value in noise[0])
        assert len(loader) == len(batches) == 17 // world // 2
        tests.append(order(eval_loader(7)))
    for rank, share in enumerate(shares):
        assert share == whole[rank::world][: len(share)]
    assert len(set(noises)) == len(noises)
    assert sorted(index for part in tests for index in part) == list(range(7))
    assert tests[1] == list(range(1, 7, world))


def test_more_processes_than_items(monkeypatch):
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed, "get_rank", lambda: 3)
    assert order(eval_loader(2)) == []
    with pytest.raises(ValueError, match=r"over 2 items is empty in a run of 4 process"):
        train_loader(2, 1)
    with pytest.raises(ValueError, match="over 0 items"):
        eval_loader(0)


def test_loader_seed():
    assert loader_seed(0) == 0
    assert loader_seed(7) == 7
    torch.manual_seed(77)
    assert loader_seed(-1) == 77
    assert len({loader_seed(7), loader_seed(7, 1), loader_seed(7, 2), loader_seed(8, 1)}) == 4
    assert torch.Generator().manual_seed(loader_seed(7, 1)) is not None


def test_item_seeds_do_not_collide():
    seeds = {item_seed(base, position) for base in range(100) for position in range(100)}
    assert len(seeds) == 10000
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_generators_are_kept_after_a_fault():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with contextlib.suppress(KeyError), kept_generators():
        seed_generators(2**64 - 1)
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
    draws = []
    for _ in range(2):
        with kept_generators():
            seed_generators(5)
            draws.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1]

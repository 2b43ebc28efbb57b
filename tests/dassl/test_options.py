"""Declared options: what each refuses, and that no accepted config fails in what is built from it."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

import train  # noqa: F401  registers the methods
from dassl.config import SCHEMA, ConfigError, Option, check_values, get_cfg_default
from dassl.data.transforms import build_transform
from dassl.engine.command import known_config
from dassl.optim import build_lr_scheduler, build_optimizer


@pytest.mark.parametrize(
    ("option", "good", "bad", "expected"),
    [
        (Option(1, low=1), (1, 7), (0, -1, 1.5, True, "1", None, ()), "1 or more"),
        (Option(0.5, low=0, high=1), (0, 0.25, 1), (-0.1, 1.1, math.nan, math.inf), "a number from 0 to 1"),
        (Option(0.5, above=0, below=1), (0.1,), (0, 1, -1), "a number above 0 below 1"),
        (Option(4, high=9), (-3, 9), (10, 2.0), "a whole number at most 9"),
        (Option(None, above=0, kind=float), (None, 1, 0.5), (0, -1, "abc", math.nan), "a number above 0, or None"),
        (Option(None, kind=bool), (None, True, False), (1, "True"), "True or False, or None"),
        (Option("a", choices=("a", "b")), ("a", "b"), ("c", "", None, 1), "one of a, b"),
        (Option((), choices=("a", "b")), ((), ["a"], ("b", "a")), ("a", ("c",), (1,)), "some of a, b"),
        (
            Option((), length=(0, 2), kind=float, above=0),
            ((), (1, 2)),
            ((1,), (0, 1), (1, 2, 3)),
            "no or two numbers above 0",
        ),
        (Option([1.0], length=3, kind=float), ([1, 2.5, 0],), ([1, 2], [1, 2, True], [1, 2, "3"]), "three numbers"),
        (Option("", rule=(str.isdigit, "digits")), ("", "12"), ("x1", 3), "digits"),
        (Option("a"), ("", "b c"), (1, None), "a text"),
        (Option(True), (False,), (1, "True"), "True or False"),
    ],
)
def test_an_option_takes_what_it_says(option, good, bad, expected):
    assert option.expected() == expected
    assert [value for value in (*good, option.default) if option.problem(value)] == []
    assert [value for value in bad if not option.problem(value)] == []
    assert option.problem(bad[0]) == f"is {bad[0]!r}, expected {expected}"


def test_every_default_is_allowed_and_explained():
    cfg = known_config()
    check_values(cfg)
    assert [key for key, option in SCHEMA.items() if not option.help] == []
    wrong = [key for key, option in SCHEMA.items() if option.problem(option.default)]
    assert wrong == []


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (("OPTIM.GAMMA", -1), "OPTIM.GAMMA is -1.0, expected a number above 0"),
        (("OPTIM.WARMUP_CONS_LR", -1), "OPTIM.WARMUP_CONS_LR is -1.0, expected 0 or more"),
        (("OPTIM.WARMUP_EPOCH", 50, "OPTIM.MAX_EPOCH", 2), "OPTIM.WARMUP_EPOCH is 50, expected at most the 2 of"),
        (
            ("OPTIM.WARMUP_EPOCH", 2, "OPTIM.MAX_EPOCH", 2, "OPTIM.LR_SCHEDULER", "batch_cosine"),
            "OPTIM.WARMUP_EPOCH is 2, expected fewer than the 2 of",
        ),
        (("INPUT.RRCROP_SCALE", (2, 3)), "INPUT.RRCROP_SCALE is (2, 3), expected two numbers above 0 to 1"),
        (("INPUT.RRCROP_SCALE", (1.0, 0.5)), "the smaller one first"),
        (("INPUT.RRCROP_SCALE", ("a", "b")), "INPUT.RRCROP_SCALE is ('a', 'b'), expected two numbers"),
        (("INPUT.RGS_P", 5), "INPUT.RGS_P is 5.0, expected a number from 0 to 1"),
        (("INPUT.GB_P", 7), "INPUT.GB_P is 7.0, expected a number from 0 to 1"),
        (("INPUT.CUTOUT_N", -1), "INPUT.CUTOUT_N is -1, expected 1 or more"),
        (("INPUT.CUTOUT_LEN", -8), "INPUT.CUTOUT_LEN is -8, expected 1 or more"),
        (("INPUT.RANDAUGMENT_N", -1), "INPUT.RANDAUGMENT_N is -1, expected a whole number from 1 to 100"),
        (("INPUT.RANDAUGMENT_M", 1000), "INPUT.RANDAUGMENT_M is 1000, expected a whole number from 0 to 30"),
        (("INPUT.GN_STD", -1), "INPUT.GN_STD is -1.0, expected 0 or more"),
        (("INPUT.TRANSFORMS", "['flip']"), "INPUT.TRANSFORMS is ('flip',), expected some of random_flip"),
        (("DATASET.VAL_PERCENT", 5), "DATASET.VAL_PERCENT is 5.0, expected a number from 0 below 1"),
        (("INPUT.NO_TRANSFORM", True, "DATALOADER.K_TRANSFORMS", 2), "DATALOADER.K_TRANSFORMS is 2, expected 1 with"),
        (("OPTIM.STAGED_LR", True), "OPTIM.STAGED_LR is True, expected with it names of layers"),
        (("TRAINER.ALIGN.THRESHOLD", "abc"), "TRAINER.ALIGN.THRESHOLD is 'abc', expected a number above 0, or None"),
        (("TRAINER.COOP.CLASS_TOKEN_POSITION", "side"), "is 'side', expected one of end, middle, front"),
        (("TRAINER.COOP.N_CTX", 0), "TRAINER.COOP.N_CTX is 0, expected 1 or more"),
        (
            ("INPUT.SIZE", (10, 24), "INPUT.TRANSFORMS", "['gaussian_blur']"),
            "INPUT.GB_K is 21, expected less than twice the 10 pixels of INPUT.SIZE",
        ),
        (("INPUT.SIZE", ()), "INPUT.SIZE is (), expected two whole numbers from 1"),
        (("SEED", 2**33), "SEED is 8589934592, expected a whole number at most 4294967295"),
    ],
)
def test_nonsense_is_refused(pairs, expected):
    cfg = known_config()
    cfg.merge_from_list(list(pairs))
    with pytest.raises(ConfigError) as caught:
        check_values(cfg)
    assert len(caught.value.problems) == 1
    assert expected in caught.value.problems[0]


def test_everything_wrong_is_shown_at_once():
    cfg = known_config()
    cfg.merge_from_list(["OPTIM.GAMMA", -1, "INPUT.RGS_P", 5, "TRAINER.COOP.N_CTX", 0, "OPTIM.WARMUP_EPOCH", 99])
    with pytest.raises(ConfigError) as caught:
        check_values(cfg)
    named = sorted(problem.split(" ")[0] for problem in caught.value.problems)
    assert named == ["INPUT.RGS_P", "OPTIM.GAMMA", "OPTIM.WARMUP_EPOCH", "TRAINER.COOP.N_CTX"]


NUMBERS = (-1000, -1, -0.5, 0, 1e-5, 0.1, 0.5, 0.99, 1, 2, 3, 4, 5, 21, 30, 1000, 2**40, math.nan, math.inf)
LISTS = ((), (1,), (0.5, 0.9), (0.9, 0.5), (8, 24), (24, 24), (0, 0), (-1,), (3, 1), (1, 1, 1), (0.2, 0.3, 0.4), ("a",))
WORDS = (
    "",
    "abc",
    "None",
    "True",
    "sgd",
    "cosine",
    "batch_cosine",
    "constant",
    "val",
    "2/3",
    "9/2",
    "1-2/3",
    "all",
    None,
)
NEGATIVE = {"SEED", "OPTIM.STEPSIZE", "OPTIM.WARMUP_EPOCH", "INPUT.GN_MEAN", "INPUT.PIXEL_MEAN"}
NEGATIVE |= {"DATASET.NUM_LABELED", "DATASET.NUM_SHOTS", "TRAINER.PROMPTSRC.GPA_MEAN", "TRAINER.CLIP_LORA.ALPHA"}
BELOW_1 = {
    "INPUT.RGS_P",
    "INPUT.GB_P",
    "OPTIM.MOMENTUM",
    "OPTIM.ADAM_BETA1",
    "DATASET.VAL_PERCENT",
    "INPUT.RRCROP_SCALE",
}


def drawn(rng):
    """KEY VALUE pairs: some keys, each with a value of its kind or of any other."""
    pairs = []
    often = [key for key in SCHEMA if key.startswith(("OPTIM", "INPUT"))]
    for _ in range(rng.randint(1, 6)):
        key = rng.choice(often if rng.random() < 0.7 else list(SCHEMA))
        option = SCHEMA[key]
        values = [*NUMBERS, *LISTS, *WORDS, True, False]
        if option.choices is not None and rng.random() < 0.7:
            values = [tuple(rng.sample(list(option.choices), 2)) if option.many else rng.choice(list(option.choices))]
        elif isinstance(option.default, (int, float)) and rng.random() < 0.7:
            values = list(NUMBERS)
        elif option.many and rng.random() < 0.7:
            values = list(LISTS)
        pairs += [key, rng.choice(values)]
    return pairs


def outside(key, value):
    """An opinion independent of the declarations: numbers are finite, few are negative, and shares are at most 1."""
    values = value if isinstance(value, (list, tuple)) else [value]
    numbers = [one for one in values if isinstance(one, (int, float))]
    return any(
        not math.isfinite(one) or (one < 0 and key not in NEGATIVE) or (one > 1 and key in BELOW_1) for one in numbers
    )


def use(cfg, image):
    """Build and use what the engine makes of a config."""
    linear = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(linear, cfg.OPTIM)
    schedule = build_lr_scheduler(optimizer, cfg.OPTIM, 2)
    for _ in range(min(cfg.OPTIM.MAX_EPOCH, 8) * (2 if getattr(schedule, "by_batch", False) else 1)):
        optimizer.zero_grad()
        linear(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
        assert all(0 <= group["lr"] < math.inf for group in optimizer.param_groups)
        schedule.step()
    if max(cfg.INPUT.SIZE) <= 64:
        for is_train in (True, False):
            transform = build_transform(cfg, is_train)
            if transform is not None:
                assert transform(image).shape == (3, *cfg.INPUT.SIZE)


def test_no_random_config_is_accepted_and_fails():
    """2,000 draws: each is refused with its values, or everything that is built from it works."""
    rng, accepted, refused = random.Random(7), 0, []
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
    start = known_config()
    start.INPUT.SIZE, start.OPTIM.MAX_EPOCH = (24, 24), 6
    for _ in range(2000):
        cfg, pairs = start.clone(), drawn(rng)
        try:
            cfg.merge_from_list(pairs)
            check_values(cfg)
        except ConfigError as err:
            refused += err.problems
            continue
        given = dict(zip(pairs[::2], pairs[1::2]))
        assert [(key, value) for key, value in given.items() if outside(key, value)] == [], pairs
        accepted += 1
        if not cfg.OPTIM.STAGED_LR:
            use(cfg, image)
    assert accepted > 200
    assert [problem for problem in refused if " is " not in problem or "expected" not in problem] == []


def test_the_random_configs_find_a_missing_bound(monkeypatch):
    cfg = get_cfg_default()
    monkeypatch.setitem(SCHEMA, "OPTIM.GAMMA", Option(0.1, "factor"))
    cfg.merge_from_list(["OPTIM.GAMMA", -1, "OPTIM.STEPSIZE", (1,)])
    check_values(cfg)
    with pytest.raises(AssertionError):
        use(cfg, Image.new("RGB", (300, 300)))

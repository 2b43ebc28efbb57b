"""The ledger of claims: intervals against closed forms and simulations, verdicts, planted effects, errors."""

import csv
import math

import numpy as np
import pytest
import yaml
from scipy import stats

from experiments import expand, load_recipe
from experiments.reports.claims import NOT_RUN, measure, to_markdown
from experiments.reports.command import main
from experiments.reports.effects import CONTRADICTED, HOLDS, UNCLEAR, Effect, difference, effect, verdict
from experiments.reports.ledger import LEDGER, LedgerError, load_ledger
from experiments.sweeps.command import choose
from tests.experiments.reports.invented_runs import write_run


def test_one_seed_gives_the_interval_of_the_mean_over_images():
    values = 100 * np.random.default_rng(0).choice([-1, 0, 0, 1], 400)
    found = effect([values[None]])
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert (found.seeds, found.images) == (1, 400)
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)


@pytest.mark.parametrize("seeds", [3, 10])
def test_seeds_alone_give_the_interval_of_student(seeds):
    means = np.linspace(-2, 2, seeds)
    found = effect([np.repeat(means[:, None], 50, axis=1)])
    half = stats.t.ppf(0.975, seeds - 1) * means.std(ddof=1) / math.sqrt(seeds)
    assert found.high == pytest.approx(half, rel=0.15)
    assert found.low == pytest.approx(-half, rel=0.15)


@pytest.mark.parametrize(("spread", "images"), [(3.0, 60), (0.3, 60)], ids=["seeds count", "images count"])
def test_the_true_effect_is_in_95_of_100_intervals(spread, images):
    """Three seeds, tested on the same images; without the stretched weights the first case covers about 75 %."""
    rng, inside, trials = np.random.default_rng(1), 0, 150
    for _ in range(trials):
        seed, image = rng.normal(0, spread, (3, 1)), rng.normal(0, 10, (1, images))
        found = effect([2 + seed + image + rng.normal(0, 1, (3, images))], draws=400)
        inside += found.low <= 2 <= found.high
    assert inside / trials > 0.9


def test_data_sets_count_alike():
    found = effect([np.full((2, 1000), 10.0), np.full((2, 10), 20.0)])
    assert (found.mean, found.low, found.high) == pytest.approx((15, 15, 15))
    for arrays in ([], [np.zeros((0, 3))], [np.zeros((2, 3)), np.zeros((3, 3))]):
        with pytest.raises(ValueError, match="same number of seeds"):
            effect(arrays)


def test_large_data_sets_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(2).normal(1, 20, (2, 300))
    whole = effect([values], draws=2000)
    monkeypatch.setattr("experiments.reports.effects._NUMBERS", 9000)
    assert effect([values], draws=2000) == pytest.approx(whole, abs=0.5)


def test_verdict_follows_the_interval():
    assert [verdict(Effect(0, *ends, 3, 9)) for ends in ((0.1, 2), (-2, -0.1), (-1, 1), (0, 1), (-1, 0))] == [
        HOLDS, CONTRADICTED, UNCLEAR, UNCLEAR, UNCLEAR
    ]  # fmt: skip


def write_predictions(path, right, images=None, order=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"{i}.png", "cat", "cat" if ok else "dog", 0.5) for i, ok in zip(images or range(len(right)), right)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "prediction", "probability"), *rows[::order]])
    return path


def test_images_are_paired_by_name(tmp_path):
    a = write_predictions(tmp_path / "a", [1, 1, 0, 0])
    b = write_predictions(tmp_path / "b", [1, 0, 1, 0], order=-1)
    assert difference([a], [b]).tolist() == [[0, 100, -100, 0]]
    assert difference([a, b], [b]).tolist() == [[0, 100, -100, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match="not of the same test images"):
        difference([a], [write_predictions(tmp_path / "c", [1, 1, 0, 0], images=[0, 1, 2, 4])])
    with pytest.raises(ValueError, match="2 and 3 seeds"):
        difference([a, a], [b, b, b])
    with pytest.raises(ValueError, match="expected the columns"):
        difference([a], [(tmp_path / "d", (tmp_path / "d").write_text("path,label\n"))[0]])


@pytest.fixture
def write_ledger(tmp_path):
    """write_ledger(claims=[...], **other): the path of a ledger; its recipe has CLIP, CoOp, MaPLe at 1 and 4 shots."""
    (tmp_path / "small.yaml").write_text(
        "{task: few_shot, config: emoji, datasets: [emoji_groups_flat], shots: [1, 4], seeds: [1, 2, 3], methods: "
        "[{name: CLIP, trainer: ZeroshotCLIP, shots: 0, seeds: 1}, CoOp, MaPLe]}"
    )

    def write(**entries):
        claim = {"claim": "better", "paper": "P", "where": "Table 1", "setting": "few_shot", "shots": 1}
        content = {"scales": ["tiny"], "recipes": {"tiny": {"few_shot": "small.yaml"}}, **entries}
        content["claims"] = [
            {**claim, **entry} for entry in entries.get("claims", [{"better": "CoOp", "than": "CLIP"}])
        ]
        path = tmp_path / "ledger.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def fill(tmp_path, rates, seeds=(1, 2, 3), images=200):
    """Finished runs of 1 shot, right on a fixed share of the images by method."""
    for run in expand(load_recipe(tmp_path / "small.yaml"), output=tmp_path / "runs"):
        if run.method in rates and run.shots < 4 and run.seed in seeds:
            write_run(run, 50.0)
            right = np.random.default_rng(run.seed).random(images) < rates[run.method]
            write_predictions(run.output_dir / "predictions.csv", right)


@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ({"CLIP": 0.3, "CoOp": 0.6}, HOLDS),
        ({"CLIP": 0.6, "CoOp": 0.3}, CONTRADICTED),
        ({"CLIP": 0.5, "CoOp": 0.5}, UNCLEAR),
        ({"CLIP": 0.5}, NOT_RUN),
    ],
    ids=str,
)
def test_a_planted_effect_is_found(tmp_path, write_ledger, rates, word):
    ledger = load_ledger(write_ledger())
    fill(tmp_path, rates)
    (found,) = measure(ledger, tmp_path / "runs")
    assert found.verdict == word
    assert bool(found.missing) == (word == NOT_RUN)
    assert word in to_markdown(ledger, [found])
    assert "1 claims, 1 experiments (tiny): " in to_markdown(ledger, [found])


def test_one_seed_decides_nothing(tmp_path, write_ledger):
    ledger = load_ledger(write_ledger())
    fill(tmp_path, {"CLIP": 0.1, "CoOp": 0.9}, seeds=(1,))
    (found,) = measure(ledger, tmp_path / "runs")
    assert found.verdict == UNCLEAR
    assert found.effect.low > 0
    assert found.missing
    assert "1 seed" in found.text()


def test_the_command_of_a_missing_run_selects_it(tmp_path, write_ledger, monkeypatch, capsys):
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    assert main(["--claims", str(write_ledger())]) == 1
    page = (tmp_path / "out" / "reports" / "claims.md").read_text()
    assert "not run" in page
    assert "0 of 1 experiments" in capsys.readouterr().out
    only = page.split("--only ")[1].split("`")[0].strip("'")
    runs = expand(load_recipe(tmp_path / "small.yaml"))
    assert {(run.method, run.shots) for run in choose(runs, [only])} == {("CLIP", 0), ("CoOp", 1)}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"recipes": {"tiny": {"few_shot": "no_such.yaml"}}}, 'there is no recipe "no_such.yaml"'),
        ({"scales": ["big"]}, "there is no scale 'big', recipes has tiny"),
        ({"claims": [{"than": "CLIP"}]}, 'claim "better": it has no experiment, better is missing'),
        ({"claims": [{"better": "CoOp", "than": "CLIPP"}]}, "has no method 'CLIPP', it has CLIP, CoOp, MaPLe"),
        ({"claims": [{"better": "CoOp", "than": "CLIP", "shots": 2}]}, "shots is 2, CoOp has (1, 4)"),
        ({"claims": [{"better": "CoOp", "than": "CLIP", "shots": None}]}, "shots is None, CoOp has (1, 4)"),
        (
            {"claims": [{"better": "CoOp", "than": "CLIP", "setting": "fly"}]},
            "setting is 'fly', expected one of few_shot",
        ),
        ({"claims": [{"better": "CoOp", "than": "CLIP", "part": "new"}]}, "part is 'new', expected one of all"),
        ({"claims": [{"better": "CoOp", "than": "CLIP", "wehre": "x"}]}, "unknown key 'wehre'"),
        ({"claims": [{"better": "CoOp", "than": "CLIP"}] * 2}, "the claim 'better' stands twice"),
        (
            {"claims": [{"better": "CoOp", "than": "CLIP", "published": {"task": "few_shot", "table": "none"}}]},
            'there are no published numbers "none"',
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_errors_of_the_file(write_ledger, capsys, entries, message):
    path = write_ledger(**entries)
    with pytest.raises(LedgerError) as caught:
        load_ledger(path)
    assert message in str(caught.value)
    assert '; claim "' not in str(caught.value)
    assert main(["--claims", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_or_claims(capsys):
    for argv in ([], ["table.yaml", "--claims"]):
        with pytest.raises(SystemExit):
            main(argv)
        assert "give either a recipe or --claims" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ledger_of_the_project():
    """Every claim has its experiment on every scale, with the same names of methods."""
    ledger = load_ledger(LEDGER, "embedded,tokens,vit_b16")
    assert len({claim.text for claim in ledger.claims}) >= 25
    assert {claim.paper for claim in ledger.claims} >= {"ALIGN", "LAMM", "UTA"}
    assert sum(claim.headline for claim in {claim.text: claim for claim in ledger.claims}.values()) == 5
    assert all(("vit_b16", claim.setting) in ledger.recipes for claim in ledger.claims)

"""Calibration, foreign images, joint accuracy and gains by class in a report, against loops over invented runs."""

import csv
import io

import numpy as np
import pytest
from invented_runs import make_method, make_recipe, write_run

from experiments import expand
from experiments.reports.document import build_report
from experiments.reports.forms import gains_csv, to_html, to_markdown
from experiments.reports.open_world import class_gains, extra_figures, reliability
from experiments.reports.plots import plots
from experiments.reports.published import PublishedTable
from experiments.reports.run_results import read_runs

METHODS = (
    make_method("CLIP", shots=(0,), seeds=(1,), trainer="ZeroshotCLIP"),
    make_method("CoOp", shots=(16,), seeds=(1, 2)),
)


def more(run, draw):
    ood = {score: {"auroc": draw.uniform(50, 100), "fpr95": draw.uniform(0, 100)} for score in ("mcm", "energy")}
    return {
        "ece": draw.uniform(0, 10),
        "ood": {"dtd": {"images": 3, **ood}, "average": ood},
        "joint": {"base": draw.uniform(0, 100), "new": 1.0, "h": 2.0} if run.part == "joint" else None,
        "per_class": {f"c{i}": {"label": i, "accuracy": draw.uniform(0, 100)} for i in range(5)},
        "reliability": {"count": [2, 0, 4], "correct": [1, 0, run.seed], "probability": [0.3, 0.0, 3.5]},
    }


@pytest.fixture
def case(tmp_path):
    recipe = make_recipe("base2new", METHODS, datasets=("dtd", "food101"), joint=True)
    runs, draw = expand(recipe, root=tmp_path / "data", output=tmp_path / "runs"), np.random.default_rng(0)
    assert {run.part for run in runs} == {"base", "new", "joint"}
    for run in runs:
        write_run(run, 50.0 + run.seed, **more(run, draw))
    entries = read_runs(runs)
    return entries, build_report(recipe, runs, entries, PublishedTable(()), "invented.yaml")


def test_figures_are_means_over_data_sets_of_means_over_seeds(case):
    entries, report = case
    frame = extra_figures(entries).set_index(["method", "part", "shots"])
    means = [
        np.mean([r.result["ood"]["average"]["mcm"]["fpr95"] for r in entries if _is(r, "CoOp", "new", dataset)])
        for dataset in ("dtd", "food101")
    ]
    assert frame.loc[("CoOp", "new", 16), "FPR95 (MCM)"] == pytest.approx(np.mean(means))
    assert "temperature" not in frame.columns  # no run has one
    assert np.isnan(frame.loc[("CoOp", "new", 16), "H among all"])
    assert frame.loc[("CoOp", "joint", 16), "H among all"] == 2.0
    assert [block.metric for block in report.blocks] == ["base", "new", "h", "all"]


def _is(r, method, part, dataset):
    return (r.method, r.part, r.dataset) == (method, part, dataset)


def test_gains_are_those_of_a_loop(case):
    entries, report = case
    assert report.zero_shot == "CLIP"
    gains = class_gains(entries, "CLIP")
    assert len(gains) == 3 * 2 * 5
    for row in gains.itertuples():
        ours, zero = (
            np.mean([r.result["per_class"][row[5]]["accuracy"] for r in entries if _is(r, name, row.part, row.dataset)])
            for name in ("CoOp", "CLIP")
        )
        assert row.gain == pytest.approx(ours - zero)
    table = list(csv.DictReader(io.StringIO(gains_csv(report))))
    assert len(table) == len(gains)
    assert float(table[0]["gain"]) == pytest.approx(gains.gain.iloc[0])


def test_bins_are_pooled(case):
    found = reliability(case[0])["CoOp"]
    assert found.count.tolist() == [24, 0, 48]  # 2 seeds, 2 data sets, 3 parts
    assert found.correct.tolist() == [12, 0, 18]


def test_the_tables_are_on_the_pages(case, tmp_path):
    report = case[1]
    figures = plots(report)
    assert [len(plot.panels) for plot in figures if plot.name == "reliability"] == [2]
    for text in (to_markdown(report), to_html(report, figures, tmp_path)):
        assert "Calibration and open world" in text
        assert "AUROC (MCM)" in text
        assert "Gains by class" in text
        assert "among base and new classes" in text


def test_a_report_without_such_figures_has_no_such_tables(invented):
    recipe = make_recipe(methods=(make_method("CoOp"),), datasets=("dtd",))
    report = invented(recipe, lambda run: 50.0).report()
    assert gains_csv(report) == ""
    text = to_markdown(report)
    assert "open world" not in text
    assert "Gains" not in text

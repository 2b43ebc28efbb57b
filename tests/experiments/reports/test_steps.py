"""Incremental learning: every figure worked out by hand, its tables, its figure, and what is missing."""

import csv
import io
import statistics
import xml.etree.ElementTree as ElementTree

import pytest
from invented_runs import make_method, make_recipe, write_run
from matplotlib.figure import Figure

from experiments.reports.compare import compare
from experiments.reports.forms import to_csv, to_html, to_latex, to_markdown
from experiments.reports.plots import panel_svg, plots
from experiments.reports.published import AVERAGE
from experiments.reports.steps import step_values

# Percent of seed 1; seeds 2 and 3 have 1 and 5 points more on the sets of the steps, and as much elsewhere.
GIVEN = {
    "step1": 80.0,
    "step2": 60.0,
    "step2_set1": 70.0,
    "step2_joint": 55.0,
    "step3": 50.0,
    "step3_set1": 64.0,
    "step3_set2": 58.0,
    "step3_joint": 40.0,
}
MORE = {1: 0.0, 2: 1.0, 3: 5.0}
METHODS = (
    make_method("CLIP", shots=(16,), seeds=(1,), trainer="ZeroshotCLIP"),
    make_method("CoOp", shots=(16,)),
    make_method("LAMM", shots=(16,)),
)
RECIPE = make_recipe("incremental", METHODS, datasets=("dtd",), sets=3)


def accuracy(run):
    if run.method == "CLIP":
        return 30.0 + len(run.part)
    own = MORE[run.seed] if "_" not in run.part else 0.0
    return GIVEN[run.part] + own + (2.0 if run.method == "LAMM" and "set" in run.part else 0.0)


@pytest.fixture
def report(invented):
    return invented(RECIPE, accuracy).report()


def tables(report):
    return {block.metric: block for block in report.blocks}


def test_figures_of_one_seed():
    found = step_values({part: {7: value} for part, value in GIVEN.items()}, sets=3)
    assert {key: values[7] for key, values in found.items()} == {
        ("current", 1): 80.0, ("current", 2): 60.0, ("current", 3): 50.0,
        ("joint", 1): 80.0, ("joint", 2): 55.0, ("joint", 3): 40.0,
        ("old", 2): 70.0, ("old", 3): 61.0,
        ("forgetting", 2): 10.0, ("forgetting", 3): 9.0,  # ((80 - 64) + (60 - 58)) / 2
    }  # fmt: skip


def test_a_seed_needs_every_part():
    given = {part: {1: value, 2: value} for part, value in GIVEN.items()}
    del given["step2"][2], given["step3_set1"][1]
    found = step_values(given, sets=3)
    assert set(found["forgetting", 2]) == {1, 2}  # the first set's own step is all it takes
    assert set(found["old", 3]) == {2}
    assert set(found["current", 2]) == {1}
    assert found["forgetting", 3] == {}
    assert set(step_values({}, sets=2)) == {(m, s) for m in ("current", "joint") for s in (1, 2)} | {
        ("old", 2),
        ("forgetting", 2),
    }


def test_tables(report):
    assert [(block.metric, block.columns, block.dataset) for block in report.blocks] == [
        ("current", ("step 1", "step 2", "step 3", AVERAGE), "dtd"),
        ("old", ("step 2", "step 3", AVERAGE), "dtd"),
        ("joint", ("step 1", "step 2", "step 3", AVERAGE), "dtd"),
        ("forgetting", ("step 2", "step 3", AVERAGE), "dtd"),
    ]
    found = tables(report)
    assert found["joint"].title == "DTD: accuracy on all classes so far, 16 shots"
    last = found["forgetting"].cells["CoOp", "step 3"]
    # of seed s: ((80 + m) - 64 + (60 + m) - 58) / 2 = 9 + m
    assert last.values == {1: 9.0, 2: 10.0, 3: 14.0}
    assert (last.summary.mean, last.summary.n) == (11.0, 3)
    assert last.summary.std == pytest.approx(statistics.stdev([9.0, 10.0, 14.0]))
    average = found["forgetting"].cells["CoOp", AVERAGE]
    assert average.summary.mean == pytest.approx((12.0 + 11.0) / 2)
    assert found["old"].cells["LAMM", "step 3"].summary.mean == 63.0
    assert found["joint"].cells["CoOp", AVERAGE].summary.mean == pytest.approx((82.0 + 55.0 + 40.0) / 3)
    clip = found["forgetting"].cells["CLIP", "step 2"]
    assert clip.values == {1: 35.0 - 40.0}  # less than nothing is forgotten where an old set is now better
    assert (clip.summary.std, clip.seeds) == (None, 1)


def test_less_forgetting_is_better(report):
    found = tables(report)
    assert found["forgetting"].ranks("step 3") == {"CLIP": 1, "LAMM": 2}
    assert found["old"].ranks("step 3") == {"LAMM": 1, "CoOp": 2}


def test_forms(report, tmp_path):
    text = to_markdown(report)
    assert "Forgetting, in points, is the mean over the old sets" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["CoOp", "12.00 ± 2.65", "11.00 ± 2.65", "11.50 ± 2.65"] in rows
    assert ["LAMM", "DTD", "forgetting, step 3", "16"] in [row[:4] for row in rows]
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(lines) == 3 * (4 + 3 + 4 + 3)
    (line,) = [r for r in lines if (r["method"], r["metric"]) == ("CoOp", "forgetting, step 3")]
    assert (line["dataset"], line["mean"], line["seeds"], line["values"]) == ("dtd", "11.0", "3", "1:9.0 2:10.0 3:14.0")
    labels = [line for line in to_latex(report).splitlines() if line.startswith("\\label")]
    assert len(set(labels)) == 4
    page = to_html(report, plots(report), tmp_path)
    assert "DTD: forgetting, 16 shots" in page


def test_figure(report):
    figures = plots(report)
    assert [figure.name for figure in figures][:1] == ["steps_16"]
    assert [figure.name for figure in figures][-1] == "cost"
    joint, forgetting = figures[0].panels
    assert [joint.title, forgetting.title] == ["DTD: joint accuracy", "DTD: forgetting"]
    assert [name for name, _, _ in figures[0].key] == ["CLIP", "CoOp", "LAMM"]
    for panel, expected in ((joint, ([1, 2, 3], [82.0, 55.0, 40.0])), (forgetting, ([2, 3], [12.0, 11.0]))):
        axes = Figure().add_subplot()
        panel.draw(axes)
        lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]
        assert len(lines) == 3
        assert lines[1] == expected
        assert axes.get_lines()[0].get_linestyle() == ":"  # learns nothing
        ElementTree.fromstring(panel_svg(panel, 0))


def test_two_data_sets_have_panels_and_tables_of_their_own(invented):
    recipe = make_recipe("incremental", (make_method("CoOp"), make_method("LAMM")), datasets=("dtd", "food101"), sets=2)
    report = invented(recipe, lambda run: accuracy(run) + (10 if run.dataset == "food101" else 0)).report()
    assert [block.dataset for block in report.blocks] == ["dtd"] * 4 + ["food101"] * 4
    assert len({block.name for block in report.blocks}) == 8
    titles = [panel.title for panel in plots(report)[0].panels]
    assert titles == ["DTD: joint accuracy", "DTD: forgetting", "Food101: joint accuracy", "Food101: forgetting"]


def test_the_last_step_is_compared(report):
    found = {comparison.title: comparison for comparison in compare(report.blocks, "CoOp", "LAMM", "t")}
    assert len(found) == 4
    old = found["DTD: mean accuracy on the old sets, 16 shots"]
    assert (old.runs.n, old.datasets.n, old.runs.mean) == (3, 1, 2.0)


def test_what_is_missing(invented):
    case = invented(RECIPE, lambda run: None if (run.method, run.seed, run.part) == ("CoOp", 2, "step3_set2") else 50.0)
    report = case.report()
    assert tables(report)["old"].cells["CoOp", "step 3"].summary.n == 2
    assert tables(report)["joint"].cells["CoOp", "step 3"].summary.n == 3
    (missing,) = report.missing
    assert missing.what == ("step3_set2, seed 2: new",)
    assert "(2 of 3 seeds)" in to_markdown(report)


def test_what_is_missing_is_grouped(invented):
    """Runs that were never started, of all parts, seeds and data sets, are one line per method."""
    recipe = make_recipe("incremental", (make_method("CoOp"), make_method("LAMM")), datasets=("dtd", "eurosat"), sets=3)
    done = {("LAMM", seed, part) for seed in MORE for part in ("step1", "step2")}
    report = invented(recipe, lambda run: 50.0 if (run.method, run.seed, run.part) in done else None).report()
    coop, lamm = report.missing
    assert coop.text() == "CoOp, DTD, EuroSAT, 1 shot (all 8 parts, seeds 1, 2, 3: new)"
    assert lamm.what == ("step2_set1, step2_joint, step3, 3 more parts, seeds 1, 2, 3: new",)
    assert lamm.command == "python sweep.py invented.yaml --only method=LAMM,dataset=dtd,eurosat,shots=1"


def test_costs_are_those_of_the_steps(invented):
    case = invented(RECIPE, accuracy)
    for run in case.runs:
        if run.method == "LAMM":
            size = {"step1": 10, "step2": 30, "step3": 20}.get(run.part, 500)
            write_run(run, 50.0, trainable_parameters=size, train_seconds=4.0 if size < 100 else 0.0)
    (cost,) = [cost for cost in case.report().costs if cost.method == "LAMM"]
    assert (cost.parameters, cost.seconds) == (30, 4.0)

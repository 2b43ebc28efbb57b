"""Cells, averages and both kinds of H, worked out here from the list of values."""

import numpy as np
import pytest
from invented_runs import make_method, make_recipe, write_run

from experiments import First
from experiments.reports.compare import compare
from experiments.reports.forms import to_markdown
from experiments.reports.plots import plots
from experiments.reports.published import AVERAGE, PublishedValue
from experiments.reports.stats import harmonic

SETS = ("dtd", "eurosat", "food101")
SEEDS = (1, 2, 3)


def accuracy(run):
    """Different for every run, and so that base, new and their order vary with the data set."""
    spread = {"dtd": 0.0, "eurosat": 21.7, "food101": 40.3}[run.dataset]
    part = {"all": 3.0, "base": 5.5, "new": -4.0 - spread / 3, "source": 1.0, "target": 2.0}[run.part]
    return 30.0 + spread + part + 0.83 * run.seed**2 + len(run.method) + run.shots / 7


def values(name, dataset, part, shots=16):
    run = type("Run", (), {"method": name, "dataset": dataset, "part": part, "shots": shots})()
    found = []
    for run.seed in SEEDS:
        found.append(accuracy(run))
    return found


def published(dataset, metric, value, provenance="published", task="base2new", shots=16):
    return PublishedValue(task, "ViT-B/16", shots, "CoOp", dataset, metric, value, provenance, "a table")


def few_shot(**more):
    methods = (make_method("CLIP", shots=(0,), seeds=(1,), trainer="ZeroshotCLIP"), make_method("CoOp", shots=(1, 16)))
    return make_recipe(methods=methods, datasets=SETS, **more)


def test_few_shot_tables(invented):
    report = invented(few_shot(), accuracy).report()
    assert [(block.shots, block.columns) for block in report.blocks] == [(1, (*SETS, AVERAGE)), (16, (*SETS, AVERAGE))]
    for block in report.blocks:
        assert block.methods == ("CLIP", "CoOp")
        for dataset in SETS:
            cell, expected = block.cells["CoOp", dataset], values("CoOp", dataset, "all", block.shots)
            assert cell.summary.mean == pytest.approx(np.mean(expected))
            assert cell.summary.std == pytest.approx(np.std(expected, ddof=1))
            assert block.cells["CLIP", dataset].summary == (values("CLIP", dataset, "all", 0)[0], None, None, None, 1)
        by_seed = np.mean([values("CoOp", dataset, "all", block.shots) for dataset in SETS], axis=0)
        average = block.cells["CoOp", AVERAGE].summary
        assert average.mean == pytest.approx(by_seed.mean())
        assert average.std == pytest.approx(by_seed.std(ddof=1))


def test_base_to_new_and_both_kinds_of_h(invented):
    recipe = make_recipe("base2new", (make_method("CoOp", shots=(16,)),), datasets=SETS)
    base, new, h = invented(recipe, accuracy).report().blocks
    means = {part: [np.mean(values("CoOp", dataset, part)) for dataset in SETS] for part in ("base", "new")}
    assert base.cells["CoOp", AVERAGE].summary.mean == pytest.approx(np.mean(means["base"]))
    assert new.cells["CoOp", AVERAGE].summary.mean == pytest.approx(np.mean(means["new"]))
    by_set = [2 * b * n / (b + n) for b, n in zip(means["base"], means["new"])]
    for dataset, expected in zip(SETS, by_set):
        assert h.cells["CoOp", dataset].summary.mean == pytest.approx(expected)
    of_averages, mean_of_h = (h.cells["CoOp", column].summary for column in h.columns[-2:])
    assert of_averages.mean == pytest.approx(harmonic(np.mean(means["base"]), np.mean(means["new"])))
    assert mean_of_h.mean == pytest.approx(np.mean(by_set))
    assert abs(of_averages.mean - mean_of_h.mean) > 0.01  # the two are not the same
    assert [h.column_title(column) for column in h.columns[-2:]] == ["H of averages", "Mean of H"]
    seeds = [harmonic(b, n) for b, n in zip(values("CoOp", "dtd", "base"), values("CoOp", "dtd", "new"))]
    assert h.cells["CoOp", "dtd"].summary.std == pytest.approx(np.std(seeds, ddof=1))


def test_published_h_both_ways(invented):
    numbers = [published(dataset, "h", 50.0 + i) for i, dataset in enumerate(SETS)]
    numbers[1] = numbers[1]._replace(provenance="unverified")
    numbers.append(published(AVERAGE, "h", 50.9))
    recipe = make_recipe("base2new", (make_method("CoOp", shots=(16,)),), datasets=SETS)
    h = invented(recipe, accuracy, numbers).report().blocks[2]
    of_averages, mean_of_h = (h.cells["CoOp", column] for column in h.columns[-2:])
    assert of_averages.published.text() == "50.90"
    assert mean_of_h.published.text() == "51.00 (unverified)"  # as sure as the least sure of its parts
    assert of_averages.delta == pytest.approx(of_averages.summary.mean - 50.9)


def test_transfer_averages_the_targets_alone(invented):
    methods = (make_method("CoOp", shots=(16,)),)
    recipe = make_recipe("cross_dataset", methods, source="dtd", targets=("eurosat", "food101"))
    (block,) = invented(recipe, accuracy).report().blocks
    assert block.columns == ("dtd", "eurosat", "food101", AVERAGE)
    assert block.cells["CoOp", "dtd"].summary.mean == pytest.approx(np.mean(values("CoOp", "dtd", "source")))
    expected = np.mean([values("CoOp", dataset, "target") for dataset in ("eurosat", "food101")])
    assert block.cells["CoOp", AVERAGE].summary.mean == pytest.approx(expected)


def test_a_style_as_domain_is_a_column(invented):
    places = {"source": "emoji_groups", "targets": ("streamline",), "domain": "openmoji"}
    recipe = make_recipe("domain_generalization", (make_method("CoOp"),), **places)
    (block,) = invented(recipe, lambda run: 40.0 + run.seed).report().blocks
    assert block.columns == ("emoji_groups_openmoji", "emoji_groups_streamline")  # an average of one repeats it
    assert "average" not in block.title


def test_an_average_of_one_data_set_is_left_out(invented):
    methods = (make_method("CoOp", shots=(16,)), make_method("VPT", shots=(16,)))
    recipe = make_recipe("base2new", methods, datasets=("dtd",))
    report = invented(recipe, lambda run: 40.0 + run.seed + 9 * (run.part == "new")).report()
    assert [block.columns for block in report.blocks] == [("dtd",)] * 3
    h = report.blocks[2]
    assert h.cells["CoOp", AVERAGE].summary.mean == pytest.approx(h.cells["CoOp", "dtd"].summary.mean)
    assert "Average" not in to_markdown(report)
    assert "of averages" not in to_markdown(report).split("## Accuracy")[1]
    assert [[panel.title for panel in plot.panels] for plot in plots(report) if plot.name == "bars_16"] == [["DTD"]]


def test_a_first_stage_counts_as_cost_and_in_no_table(invented):
    first = First("emoji_stage1", "TRAINER.PLOTPP.PRETRAIN_DIR")
    recipe = make_recipe(methods=(make_method("CoOp"), make_method("PLOTPP", first=first)), datasets=("dtd",))
    report = invented(recipe, lambda run: 1.0 if run.part == "first" else 50.0).report()
    (block,) = report.blocks
    assert {cell.summary.mean for cell in block.cells.values()} == {50.0}
    assert {cost.method: cost.seconds for cost in report.costs} == {"CoOp": 20.0, "PLOTPP": 40.0}


def test_no_average_over_fewer_data_sets(invented):
    report = invented(few_shot(), lambda run: None if run.dataset == "food101" else accuracy(run)).report()
    block = report.blocks[0]
    assert block.cells["CoOp", "dtd"].summary is not None
    assert block.cells["CoOp", AVERAGE].summary is None
    assert block.ranks(AVERAGE) == {}


def test_missing_seeds_are_counted(invented):
    report = invented(few_shot(), lambda run: None if (run.dataset, run.seed) == ("dtd", 3) else accuracy(run)).report()
    block = report.blocks[0]
    assert (block.cells["CoOp", "dtd"].summary.n, block.cells["CoOp", "dtd"].seeds) == (2, 3)
    assert block.cells["CoOp", AVERAGE].summary.n == 2
    means = [np.mean(values("CoOp", "dtd", "all", 1)[:2])] + [np.mean(values("CoOp", d, "all", 1)) for d in SETS[1:]]
    assert block.cells["CoOp", AVERAGE].summary.mean == pytest.approx(np.mean(means))


def test_ranks_go_by_what_is_shown(invented):
    methods = tuple(make_method(name, seeds=(1,)) for name in ("CoOp", "ALIGN", "MaPLe", "VPT"))
    given = {"CoOp": 50.001, "ALIGN": 50.004, "MaPLe": 49.0, "VPT": 48.0}
    report = invented(make_recipe(methods=methods, datasets=("dtd",)), lambda run: given[run.method]).report()
    assert report.blocks[0].ranks("dtd") == {"CoOp": 1, "ALIGN": 1, "MaPLe": 2}


def test_few_shot_number_of_the_method_without_training(invented):
    numbers = [PublishedValue("few_shot", "ViT-B/16", 0, "CLIP", "dtd", "accuracy", 44.27, "published", "a table")]
    for block in invented(few_shot(), accuracy, numbers).report().blocks:
        assert block.cells["CLIP", "dtd"].published.value == 44.27
        assert block.cells["CoOp", "dtd"].published is None


def test_comparison_pairs_data_sets_and_seeds(invented):
    methods = (make_method("CoOp", shots=(1, 16)), make_method("ALIGN", shots=(1, 16)))
    report = invented(make_recipe(methods=methods, datasets=SETS), accuracy).report()
    one, sixteen, both = compare(report.blocks, "CoOp", "ALIGN")
    assert (one.runs.n, one.datasets.n, both.runs.n, both.datasets.n) == (9, 3, 18, 3)
    assert one.runs.mean == pytest.approx(1.0)  # the names differ by one letter
    assert sixteen.runs.wins == 9
    with pytest.raises(ValueError, match="choose from: CoOp, ALIGN"):
        compare(report.blocks, "CoOp", "VPT")


def test_one_zero_shot_value_is_paired_with_every_seed(invented):
    report = invented(few_shot(), accuracy).report()
    found = compare(report.blocks, "CLIP", "CoOp", "t")[0]
    expected = [v - values("CLIP", d, "all", 0)[0] for d in SETS for v in values("CoOp", d, "all", 1)]
    assert found.runs.n == 9
    assert found.runs.mean == pytest.approx(np.mean(expected))


def test_a_method_that_keeps_images_without_learning_is_paired_seed_by_seed(invented):
    """Tip-Adapter has no parameters to learn, but the images it keeps are those of a seed."""
    methods = (make_method("CLIP", trainer="ZeroshotCLIP"), make_method("TipAdapter"), make_method("CoOp"))
    measured = {"CLIP": (50, 50, 50), "TipAdapter": (40, 50, 60), "CoOp": (41, 51, 61)}
    made = invented(make_recipe(methods=methods, datasets=("dtd",)), lambda run: measured[run.method][run.seed - 1])
    for run in made.runs:
        if run.method == "TipAdapter":
            write_run(run, measured["TipAdapter"][run.seed - 1], epochs=1, trainable_parameters=0)
    report = made.report()
    assert report.blocks[0].untrained == {"CLIP"}
    (found,) = compare(report.blocks, "TipAdapter", "CoOp", "t")
    assert (found.runs.wins, found.runs.low, found.runs.high) == (3, 1.0, 1.0)


def test_transfer_is_compared_on_the_targets(invented):
    methods = (make_method("CoOp"), make_method("ALIGN"))
    recipe = make_recipe("cross_dataset", methods, source="dtd", targets=("eurosat", "food101"))
    (found,) = compare(invented(recipe, accuracy).report().blocks, "CoOp", "ALIGN")
    assert (found.runs.n, found.datasets.n) == (6, 2)


def test_methods_without_a_common_run_are_not_compared(invented):
    methods = (make_method("CoOp"), make_method("ALIGN"))
    recipe = make_recipe(methods=methods, datasets=("dtd",))
    report = invented(recipe, lambda run: accuracy(run) if run.method == "CoOp" else None).report()
    with pytest.raises(ValueError, match="share no finished data set and seed"):
        compare(report.blocks, "CoOp", "ALIGN")

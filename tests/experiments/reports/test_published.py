"""Published numbers: the files that come with the project, and what is refused."""

import csv
from statistics import mean

import pytest

from experiments.reports.published import AVERAGE, COLUMNS, load, read_table, tables
from experiments.reports.stats import harmonic

GOOD = ["base2new", "ViT-B/16", "16", "CoOp", "dtd", "base", "80.0", "published", "a paper, Table 1"]
OF_THE_SOURCE = ("cross_dataset", "cross_dataset_dept", "domain_generalization", "domain_generalization_dept")
# Sources that print the mean over seeds or data sets of H, not H of the means.
H_OF_THE_SOURCE = {("RPO", AVERAGE), ("MaPLe", "fgvc_aircraft"), ("PromptSRC", "oxford_pets")}


def write(folder, *rows, header=COLUMNS):
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def changed(**values):
    return [values.get(name, value) for name, value in zip(COLUMNS, GOOD)]


@pytest.mark.parametrize("name", tables())
def test_every_file_is_in_order(name):
    assert read_table(name)


def test_figures_read_from_the_sources():
    table = load(["base2new", "align", "align_unverified"])
    assert table.find("base2new", "CoOp", AVERAGE, "h", 16).value == 71.66
    assert table.find("base2new", "PromptSRC", "ucf101", "new", 16).value == 78.80
    assert table.find("base2new", "NoSuchMethod", "ucf101", "new", 16) is None


@pytest.mark.parametrize("name", ["base2new", "cross_dataset", "domain_generalization", "few_shot"])
def test_averages_are_those_of_the_rows(name):
    """Up to rounding; of the columns with a full set of rows."""
    numbers, checked = read_table(name), 0
    for average in (n for n in numbers if n.dataset == AVERAGE and n.metric != "h"):
        place = (average.method, average.metric, average.shots)
        rows = [n for n in numbers if (n.method, n.metric, n.shots) == place and n.dataset != AVERAGE]
        if name in OF_THE_SOURCE:
            rows = [n for n in rows if n.dataset != "imagenet"]
        if rows:
            checked += 1
            assert mean(n.value for n in rows) == pytest.approx(average.value, abs=0.021), place
    assert checked >= 5


def test_h_is_that_of_base_and_new_but_for_three_sources():
    odd = set()
    for name in ("base2new", "base2new_dept", "align_unverified"):
        values = {(n.method, n.dataset, n.metric): n.value for n in read_table(name) if n.task == "base2new"}
        for (method, dataset, metric), value in values.items():
            if (
                metric == "h"
                and abs(harmonic(values[method, dataset, "base"], values[method, dataset, "new"]) - value) > 0.05
            ):
                odd.add((method, dataset))
    assert odd == H_OF_THE_SOURCE


def test_what_was_run_again_measured_in_a_figure_or_recalled_says_so():
    for name in tables():
        for number in read_table(name):
            source = number.source.lower()
            for word, provenance in (("re-run", "rerun"), ("digitised", "digitised"), ("recalled", "unverified")):
                assert (word in source) == (number.provenance == provenance), number


def test_only_numbers_of_the_authors_stand_without_a_word():
    table = load(["align", "align_unverified", "base2new_dept", "lamm_few_shot"])
    assert table.find("base2new", "ALIGN", "eurosat", "base", 16).text() == "94.03"  # the printed one comes first
    assert table.find("base2new", "ALIGN", "dtd", "base", 16).text() == "82.13 (unverified)"
    assert table.find("base2new", "CoOp", "dtd", "base", 16).text() == "79.33 (rerun)"
    assert table.find("few_shot", "LAMM", "dtd", "accuracy", 1).text().endswith("(digitised)")


def test_few_shot_numbers_are_found_by_shots():
    table = load(["few_shot"])
    assert table.find("few_shot", "CoOp", "dtd", "accuracy", 16).value == 69.87
    assert table.find("few_shot", "CoOp", "dtd", "accuracy", 3) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(provenance="heard"), "provenance is 'heard', expected one of published"),
        (changed(metric="f1"), "metric is 'f1'"),
        (changed(value="101"), "value is 101.0, expected a percentage"),
        (changed(value="-"), "could not convert"),
        (changed(source=" "), "source is empty"),
        (changed(shots="few"), "shots is 'few'"),
        (GOOD, "stands twice"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, row, message):
    write(tmp_path, GOOD, row)
    with pytest.raises(ValueError, match=message):
        read_table("t", tmp_path)


def test_h_must_fit(tmp_path):
    write(tmp_path, GOOD, changed(metric="new", value="40"), changed(metric="h", value="60"))
    with pytest.raises(ValueError, match=r"H is 60.0, but base and new give 53.33"):
        read_table("t", tmp_path)


def test_wrong_columns_and_missing_tables(tmp_path):
    write(tmp_path, header=COLUMNS[:-1])
    with pytest.raises(ValueError, match="expected the columns"):
        read_table("t", tmp_path)
    with pytest.raises(FileNotFoundError, match="choose from: align,"):
        load(["nowhere"])

"""Fixtures of the tests of reports."""

from types import SimpleNamespace

import pytest
from invented_runs import write_run

from experiments import expand
from experiments.reports.document import build_report
from experiments.reports.published import PublishedTable
from experiments.reports.run_results import read_runs


@pytest.fixture
def invented(tmp_path):
    """invented(recipe, values) writes runs and reads them: `values` maps a run to its accuracy, or to None if it is not
    done."""

    def build(recipe, values, numbers=()):
        runs = expand(recipe, root=tmp_path / "data", output=tmp_path / "runs")
        for run in runs:
            accuracy = values(run)
            if accuracy is not None:
                write_run(run, accuracy)

        def report():
            return build_report(recipe, runs, read_runs(runs), PublishedTable(numbers), "invented.yaml")

        return SimpleNamespace(recipe=recipe, runs=runs, folder=tmp_path / "runs", report=report)

    return build

"""Results that count, and results that may not be averaged."""

import json

import pytest
from invented_runs import make_method, make_recipe, write_run

from experiments.reports.run_results import ProtocolMismatch, protocol, read_runs
from experiments.reports.tables import escape_latex, escape_markdown

RECIPE = make_recipe(methods=(make_method("CoOp"), make_method("ALIGN")), datasets=("dtd",))


def edit(run, **changed):
    path = run.output_dir / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.fixture
def done(invented):
    return invented(RECIPE, lambda run: 50.0 + run.seed)


def test_seeds_may_differ_in_what_the_seed_decides(done):
    for run in done.runs:
        write_run(run, 50.0, {"split": {"train_x": f"picks of {run.seed}", "test": "t"}})
    assert done.report().blocks[0].cells["CoOp", "dtd"].summary.n == 3


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"classnames": "other"}, "classnames"),
        ({"test_split": "other"}, "test_split"),
        ({"templates": "art of {}."}, "templates"),
        ({"transforms": {"train": "Flip", "test": "Resize"}}, "transforms.train"),
        ({"backbone": "other"}, "backbone"),
        ({"shots": 4}, "shots"),
        ({"split_origin": "own"}, "split_origin"),
    ],
)
def test_different_protocols_are_not_averaged(done, changed, field):
    odd = next(run for run in done.runs if (run.method, run.seed) == ("CoOp", 3))
    write_run(odd, 50.0, changed)
    with pytest.raises(ProtocolMismatch) as caught:
        done.report()
    message = str(caught.value)
    assert f"CoOp, dtd, 1 shots, all: {field} differs" in message
    assert str(odd.output_dir) in message
    assert "ALIGN, dtd" not in message
    assert message.count("differs") == 1


@pytest.mark.parametrize(("name", "value"), [("epochs", 200), ("selection", "val")])
def test_another_length_or_choice_of_weights_is_another_protocol(done, name, value):
    edit(next(run for run in done.runs if run.seed == 2), **{name: value})
    with pytest.raises(ProtocolMismatch, match=f"{name} differs"):
        done.report()


@pytest.mark.parametrize("field", ["test_split", "classnames", "backbone"])
def test_methods_of_a_column_share_the_data(done, field):
    for run in done.runs:
        if run.method == "ALIGN":
            write_run(run, 50.0, {field: "other"})
    with pytest.raises(ProtocolMismatch, match=f"dtd, all, all methods: {field} differs"):
        done.report()


def test_methods_may_train_in_their_own_way(done):
    for run in done.runs:
        if run.method == "ALIGN":
            write_run(run, 50.0, {"templates": "own", "transforms": {"train": "own", "test": "Resize"}}, epochs=50)
    assert done.report().blocks


def test_protocol_is_flat():
    marks = {"seed": 1, "split": {"test": "t"}, "transforms": {"test": "Resize"}, "shots": 4}
    assert protocol({"fingerprint": marks, "epochs": 5}) == {
        "transforms.test": "Resize", "shots": 4, "selection": None, "epochs": 5,
    }  # fmt: skip


GOOD = '{"accuracy": 50, "fingerprint": {}, "method": "CoOp", "seed": 1, "shots": %s, "train_seconds": %s}'


@pytest.mark.parametrize(
    ("text", "err"),
    [
        ("{", "damaged"),
        ("[]", "it holds [], expected the figures of a run"),
        ('{"accuracy": null}', "has no accuracy"),
        ('{"accuracy": NaN}', "has no accuracy"),
        ('{"accuracy": true}', "has no accuracy"),
        ('{"accuracy": 101}', "expected a percentage"),
        ('{"accuracy": null, "mean_recall": 101}', "has mean_recall 101"),
        ('{"accuracy": 50}', "has no fingerprint"),
        ('{"accuracy": 50, "fingerprint": {}, "method": "VPT"}', "method is 'VPT', expected 'CoOp'"),
        ('{"accuracy": 50, "fingerprint": {}, "method": "CoOp", "seed": 2}', "seed is 2, expected 1"),
        (GOOD % ("4", "null"), "shots is 4, expected 1"),
        (GOOD % ("1", '"long"'), "has train_seconds 'long', expected a number"),
        (GOOD % ("1", "NaN"), "has train_seconds nan"),
    ],
)
def test_a_damaged_result_is_missing_and_says_why(done, text, err):
    run = next(run for run in done.runs if (run.method, run.seed) == ("CoOp", 1))
    (run.output_dir / "result.json").write_text(text)
    report = done.report()
    assert report.blocks[0].cells["CoOp", "dtd"].summary.n == 2
    (missing,) = report.missing
    assert "damaged" in missing.what[0]
    assert err in missing.what[0]


def test_states_of_missing_runs(done):
    runs = [run for run in done.runs if run.method == "CoOp"]
    (runs[0].output_dir / "DONE").unlink()
    (runs[1].output_dir / "DONE").unlink()
    (runs[1].output_dir / "FAILED").write_text("no memory\nmore\n")
    for path in runs[2].output_dir.iterdir():
        path.unlink()
    problems = [entry.err for entry in read_runs(runs)]
    assert problems == ["incomplete", "failed: no memory", "new"]
    report = done.report()
    assert (report.done, report.asked) == (3, 6)
    (missing,) = report.missing
    assert missing.what == ("seed 1: incomplete", "seed 2: failed: no memory", "seed 3: new")
    assert missing.command == "python sweep.py invented.yaml --only method=CoOp,dataset=dtd,shots=1"


def test_the_command_of_a_missing_cell_chooses_its_runs(invented):
    sweep = pytest.importorskip("experiments.sweeps.command")
    methods = (make_method("IVLP [2+2, 5ep]", trainer="IVLP"), make_method("CoOp"))
    case = invented(make_recipe(methods=methods, datasets=("dtd", "food101")), lambda run: None)
    for missing in case.report().missing:
        choice = missing.command.split("--only ")[1].strip("'")
        chosen = sweep.choose(case.runs, [choice])
        assert {(run.method, run.dataset) for run in chosen} == {(missing.method, name) for name in missing.datasets}
        assert missing.datasets == ("dtd", "food101")  # the same is missing, so one line says it
        assert len(chosen) == 6


def test_escapes():
    assert escape_markdown("a|b *c* _d_ e_f <g>\n`h` [i]") == r"a\|b \*c\* \_d\_ e_f \<g\> \`h\` \[i\]"
    assert escape_markdown("$x$ ~~y~~ &lt; R&D") == r"\$x\$ \~\~y\~\~ \&lt; R&D"
    assert escape_latex(r"50% of a_b & #1 {x} \y ~z^2 $") == (
        r"50\% of a\_b \& \#1 \{x\} \textbackslash{}y \textasciitilde{}z\textasciicircum{}2 \$"
    )

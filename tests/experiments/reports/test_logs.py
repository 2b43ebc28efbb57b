"""log.txt of the original CoOp family, and its place in a table."""

import pytest
from invented_runs import make_method, make_recipe

from experiments import expand
from experiments.reports.logs import find_logs, last_figure, read_log
from experiments.reports.run_results import place_logs

LOG = """\
***************
** Arguments **
***************
backbone:{space}
config_file: configs/trainers/CoOp/{config}.yaml
dataset_config_file: configs/datasets/{dataset}.yaml
eval_only: {evaluation}
model_dir: {model_dir}
opts: {opts}
seed: {seed}
trainer: CoOp
************
** Config **
************
SEED: 9
epoch [1/50][1/8] loss 1.0
* accuracy: 11.0%
{signal}
Deploy the last-epoch model
=> result
* total: 2,465
* correct: {correct}
* accuracy: 12.3%
* error: 1.0%
* macro_f1: 50.5%
* class: 0 (face)\ttotal: 5\tcorrect: 5\tacc: 99.0%
"""


def write_log(
    folder, dataset="dtd", shots=1, seed=1, opts=(), evaluation=False, model_dir="", config="vit_b16", **more
):
    folder.mkdir(parents=True, exist_ok=True)
    options = [*opts, "DATASET.NUM_SHOTS", str(shots)]
    values = {"space": " ", "signal": "" if evaluation else "Finish training", "correct": "2,342", **more}
    text = LOG.format(
        dataset=dataset, seed=seed, opts=options, evaluation=evaluation, model_dir=model_dir, config=config, **values
    )
    (folder / "log.txt").write_text(text)


def test_a_log_says_what_was_run(tmp_path):
    write_log(tmp_path, "caltech101", 16, 3, opts=("TRAINER.COOP.CSC", "False"))
    log = read_log(tmp_path / "log.txt")
    assert (log.trainer, log.config, log.dataset, log.shots, log.seed) == ("CoOp", "vit_b16", "caltech101", 16, 3)
    assert (log.subsample, log.evaluation, log.variant) == ("all", False, "TRAINER.COOP.CSC=False")
    assert log.figures["accuracy"] == pytest.approx(100 * 2342 / 2465)  # from the counts, with all digits
    assert log.figures["macro_f1"] == 50.5


def test_the_printed_figure_is_what_the_summary_of_a_folder_shows(tmp_path):
    write_log(tmp_path)
    assert last_figure(tmp_path / "log.txt", "accuracy", ["Finish training"]) == 12.3
    with pytest.raises(ValueError, match='no "\\* top5'):
        last_figure(tmp_path / "log.txt", "top5", ["Finish training"])


def test_a_log_that_was_cut_off_is_named(tmp_path):
    write_log(tmp_path / "a")
    write_log(tmp_path / "b", signal="Killed")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "log.txt").write_text("hello\n")
    (tmp_path / "d" / "log.txt").mkdir(parents=True)
    runs, problems = find_logs(tmp_path)
    assert [run.folder.name for run in runs] == ["a"]
    assert [(folder.name, err.split(",")[0]) for folder, err in problems] == [
        ("b", "it has no accuracy after the end of the run"),
        ("c", 'there are no arguments in it ("** Arguments **")'),
        ("d", f'Is a directory: "{tmp_path / "d" / "log.txt"}"'),
    ]


def placed(tmp_path, recipe):
    logs, _ = find_logs(tmp_path)
    entries, rest = place_logs(recipe, logs, expand(recipe))
    return {(r.method, r.dataset, r.part, r.shots, r.seed) for r in entries}, rest


def test_few_shot_logs_are_rows_of_their_own(tmp_path):
    recipe = make_recipe(methods=(make_method("CoOp"),), datasets=("dtd",))
    write_log(tmp_path / "1")
    write_log(tmp_path / "2", seed=2)
    write_log(tmp_path / "other set", dataset="food101")
    write_log(tmp_path / "base", opts=("DATASET.SUBSAMPLE_CLASSES", "base"))
    write_log(tmp_path / "moved", evaluation=True, model_dir="output/imagenet/CoOp/seed1")
    found, rest = placed(tmp_path, recipe)
    assert found == {("CoOp (log)", "dtd", "all", 1, 1), ("CoOp (log)", "dtd", "all", 1, 2)}
    assert rest == 3


def test_variants_of_a_trainer_are_told_apart(tmp_path):
    recipe = make_recipe(methods=(make_method("CoOp"),), datasets=("dtd",))
    write_log(tmp_path / "1", opts=("TRAINER.COOP.CSC", "True"))
    write_log(tmp_path / "2", opts=("TRAINER.COOP.CSC", "False"))
    found, _ = placed(tmp_path, recipe)
    assert {method for method, *_ in found} == {
        "CoOp vit_b16 TRAINER.COOP.CSC=True (log)",
        "CoOp vit_b16 TRAINER.COOP.CSC=False (log)",
    }


def test_two_logs_of_one_cell_are_not_guessed_between(tmp_path):
    recipe = make_recipe(methods=(make_method("CoOp"),), datasets=("dtd",))
    write_log(tmp_path / "1")
    write_log(tmp_path / "2")
    with pytest.raises(ValueError, match="two logs claim CoOp"):
        placed(tmp_path, recipe)


def test_base_and_new(tmp_path):
    recipe = make_recipe("base2new", (make_method("CoOp", shots=(16,)),), datasets=("dtd",))
    base, new = (("DATASET.SUBSAMPLE_CLASSES", half) for half in ("base", "new"))
    write_log(tmp_path / "base", shots=16, opts=base)
    write_log(tmp_path / "new", shots=16, opts=new, evaluation=True, model_dir="output/base2new/train_base/dtd/seed1")
    found, rest = placed(tmp_path, recipe)
    assert found == {("CoOp (log)", "dtd", part, 16, 1) for part in ("base", "new")}
    assert rest == 0


@pytest.mark.parametrize(
    ("entries", "halves", "places"),
    [
        ({"task": "few_shot", "datasets": ("dtd",)}, [()], {("dtd", "all")}),
        ({"task": "base2new", "datasets": ("dtd",)}, ["base", "new"], {("dtd", "base"), ("dtd", "new")}),
        ({"task": "cross_dataset", "source": "dtd", "targets": ("food101",)}, [()], {("dtd", "source")}),
        ({"task": "cross_dataset", "source": "food101", "targets": ("dtd",)}, [()], {("dtd", "target")}),
    ],
)
def test_zero_shot_logs_need_no_shots_and_no_seed(tmp_path, entries, halves, places):
    """As the script of the original leaves them: --eval-only, without a model, seed -1."""
    for half in halves:
        options = ("DATASET.SUBSAMPLE_CLASSES", half) if half else ()
        write_log(tmp_path / str(half), shots=-1, seed=-1, opts=options, evaluation=True)
    recipe = make_recipe(methods=(make_method("CoOp", shots=(1, 16)),), **entries)
    found, rest = placed(tmp_path, recipe)
    assert found == {("CoOp (log)", dataset, part, 0, 1) for dataset, part in places}
    assert rest == 0


def test_transfer(tmp_path):
    recipe = make_recipe("cross_dataset", (make_method("CoOp", shots=(16,)),), source="imagenet", targets=("dtd",))
    write_log(tmp_path / "source", "imagenet", shots=16)
    write_log(tmp_path / "target", shots=-1, evaluation=True, model_dir="output/imagenet/CoOp/seed1")
    found, rest = placed(tmp_path, recipe)
    assert found == {("CoOp (log)", "imagenet", "source", 16, 1), ("CoOp (log)", "dtd", "target", 16, 1)}
    assert rest == 0

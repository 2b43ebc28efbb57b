"""Small hostile things: formulas in tables, code in recipes, texts without end, names that are too long."""

import collections
import csv
import io
import os
import sys
import time

import pandas as pd
import pytest
import yaml

import clip
from dassl.config import ConfigError, imports
from dassl.engine.command import known_config
from dassl.utils import safe_load
from dassl.utils.errors import error_line
from dassl.utils.spreadsheet import safe_cell
from dassl.utils.yaml_files import load_yaml
from datasets.few_shot import read_split
from datasets.image_text.shards import find_shards
from experiments import load_recipe
from experiments.recipe import ROOT
from experiments.reports import command as report
from experiments.sweeps import command as sweep

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.fixture(autouse=True)
def _all_code():
    yield
    imports.run_only(None)


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "@SUM(A1)", "+cmd|x", "-2+3", "\t=1"])
def test_formulas_become_text(text):
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1.5", "+3", "-inf", -1.5, None, "CoOp", "", "a=b"])
def test_numbers_and_other_texts_stay(value):
    assert safe_cell(value) == value


def test_a_frame_keeps_its_numbers():
    frame = pd.DataFrame({"method": ["=A1", "CoOp"], "mean": [-1.25, None]}).map(safe_cell)
    assert list(csv.reader(io.StringIO(frame.to_csv(index=False)))) == [
        ["method", "mean"],
        ["'=A1", "-1.25"],
        ["CoOp", ""],
    ]


def test_a_pickle_cannot_change_counter():
    """GLOBAL collections.Counter, (None, {"most_common": None}), BUILD: sets an attribute of what GLOBAL gave."""
    text = b"\x80\x02ccollections\nCounter\nN}X\x0b\x00\x00\x00most_commonNs\x86b."
    found = safe_load._RestrictedUnpickler(io.BytesIO(text)).load()
    assert found.most_common is None
    assert collections.Counter("aab").most_common(1) == [("a", 2)]


RECIPE = """
task: few_shot
config: {folder}/config.yaml
datasets: [{folder}/set.yaml]
shots: [1]
imports: [{code}]
methods: [{{name: Stranger, trainer: Stranger}}]
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A recipe with code beside it; the code leaves a file when it runs."""
    monkeypatch.setenv("OUTPUT", str(tmp_path / "out"))
    code = tmp_path / "code.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "set.yaml").write_text("DATASET: {NAME: Strange}\n")
    (tmp_path / "config.yaml").write_text("TRAINER: {STRANGER: {N: 1}}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(code=code, folder=tmp_path))
    return recipe


def test_status_and_report_run_no_code_of_strangers(stranger, tmp_path, capsys):
    sweep.main(["status", str(stranger)])
    report.main([str(stranger), "--output", str(tmp_path / "report")])
    sweep.main([str(stranger), "--dry-run"])
    assert not (tmp_path / "ran").exists()
    assert "--trust" in capsys.readouterr().err


def test_training_asks_for_trust(stranger, tmp_path, capsys):
    assert sweep.main([str(stranger)]) == 2
    assert not (tmp_path / "ran").exists()
    assert "add --trust to run it" in capsys.readouterr().err
    sweep.main(["status", str(stranger), "--trust"])
    assert (tmp_path / "ran").exists()


def test_code_of_the_project_and_installed_code_need_no_trust():
    imports.run_only([ROOT])
    assert imports.import_modules(["tests.golden_configs", "yaml"])
    with pytest.raises(imports.UntrustedCode):
        imports.import_modules(["/no/such/place.py"])
    with pytest.raises(imports.UntrustedCode):
        imports.import_modules(["no_such_module"])


def test_a_module_in_the_current_folder_needs_trust(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    imports.run_only([ROOT])
    with pytest.raises(imports.UntrustedCode, match="evil_module"):
        imports.import_modules(["evil_module"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [(BOMB, "100000 entries"), ("x: " + "[" * 2000, "nested"), ("x: " + "[" * 60 + "]" * 60, "nested"),
     ("a: 1\na: 2", "stands twice|more than once")],
    ids=["bomb", "open", "deep", "twice"],
)  # fmt: skip
def test_yaml_without_end_is_one_clear_error(tmp_path, text, shown):
    start = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=shown):
        load_yaml(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=shown):
        load_recipe(tmp_path / "recipe.yaml")
    assert time.monotonic() - start < 60


def test_references_that_are_used_stay():
    assert load_yaml("a: &x {k: 1}\nb: *x\nc: {<<: *x, d: 2}") == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "d": 2}}
    assert load_yaml("") is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"train": [], "train": [], "val": [], "test": []}'])
def test_split_files_with_deep_nesting_or_a_key_twice(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match=r"split\.json"):
        read_split(tmp_path / "split.json", tmp_path)


def test_values_without_end_are_one_short_error():
    cfg = known_config()
    for text in ("[" * 100_000, "1" + "-1" * 5000, "9" * 5000, "[" * 500 + "]" * 500):
        with pytest.raises(ConfigError) as caught:
            cfg.merge_from_list(["INPUT.TRANSFORMS", text])
        assert len(str(caught.value)) < 400


def test_yaml_that_refers_to_itself_is_refused():
    for text in ("OPTIM: &a {LR: *a}", "x: &a [*a]", "&a [[*a]]"):
        with pytest.raises(yaml.YAMLError, match="refers to itself"):
            load_yaml(text)


def test_a_name_that_is_no_text_is_shown():
    with pytest.raises(UnicodeEncodeError) as caught:
        "data/d\udcffg/0.png".encode()
    assert error_line(caught.value) == r"a name is not text in utf-8 ('data/d\udcffg/0.png'); rename the file or folder"


@pytest.mark.parametrize(
    ("shots", "seeds", "shown"),
    [([1], [1], ""), ([1], [2**32], "seeds is"), (range(2000), range(8000), "make 16,000,000 runs")],
    ids=["good", "seed", "runs"],
)
def test_recipes_have_limits(tmp_path, shots, seeds, shown):
    path = tmp_path / "r.yaml"
    text = "task: few_shot\nconfig: emoji\ndatasets: [emoji_food]\nmethods: [CoOp]\n"
    path.write_text(f"{text}shots: {list(shots)}\nseeds: {list(seeds)}\n")
    start = time.monotonic()
    if not shown:
        assert load_recipe(path).datasets == ("emoji_food",)
    else:
        with pytest.raises(ValueError, match=shown):
            load_recipe(path)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("pattern", ["x{0..99999999}.tar", "x{0..99999}.tar"])
def test_shard_patterns_have_a_limit(tmp_path, pattern):
    start = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError), match=r"99999"):
        find_shards(os.path.join(tmp_path, pattern))
    assert time.monotonic() - start < 60


def test_a_name_that_is_too_long_says_what_to_shorten():
    with pytest.raises(ValueError, match="shorten the class name") as err:
        clip.tokenize("a photo of a " + "x1" * 250)
    assert isinstance(err.value, RuntimeError)  # as OpenAI's
    assert len(str(err.value)) < 400

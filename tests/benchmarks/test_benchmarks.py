"""The benchmarks run and print what they say; their figures are not judged here."""

import argparse
import json

import pytest

import clip
from benchmarks import loader, methods, plot, shots, sinkhorn
from benchmarks.align_step import extend
from benchmarks.report import show


def test_figures_are_json_lines_and_one_table_row(capsys):
    show("name", {"seconds": 1.5, "ratio": 4.0}, {"classes": 3})
    *lines, head, rule, row = capsys.readouterr().out.splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["benchmark"], r["figure"], r["value"]) for r in records] == [
        ("name", "seconds", 1.5),
        ("name", "ratio", 4.0),
    ]
    assert all(r["settings"] == {"classes": 3} and r["commit"] and r["torch"] and r["cores"] for r in records)
    assert head == "| classes | seconds | ratio |"
    assert rule.count("|") == row.count("|") == 4
    assert row == "| 3 | 1.5 | 4.0 |"


def test_a_line_through_two_measurements():
    assert extend([(20, 5.0), (40, 9.0)], 100) == 21.0
    assert extend([(100, 5.0)], 100) == 5.0


@pytest.mark.filterwarnings("ignore")
def test_sinkhorn_benchmark_on_small_sets(capsys):
    parser = argparse.ArgumentParser()
    sinkhorn.add_arguments(parser)
    sizes = [
        "--classes=3",
        "--batch=2",
        "--modes=2",
        "--image-tokens=9",
        "--text-tokens=4",
        "--width=16",
        "--threads=1",
    ]
    sinkhorn.run(parser.parse_args([*sizes, "--rounds=1", "--pot-problems=3"]))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    errors = [line["value"] for line in lines if line["figure"] == "largest_error_of_cosine"]
    assert len(errors) == 3
    assert max(errors) < 1e-2
    differences = [line["value"] for line in lines if line["figure"] == "largest_difference_to_pot"]
    assert len(differences) == 2  # token and prompt level
    assert max(differences) < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes, each of which imports torch
def test_cost_of_methods(capsys, pictures_root, tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    methods.add_arguments(parser)
    ask = methods.ask_worker

    def here(benchmark, method, options, *switches):
        """The plain way changes the process, so that it needs one of its own; our way does not."""
        if switches or "weights" in options:
            return ask(benchmark, method, options, *switches)
        given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        return methods.work(parser.parse_args([*given, "--worker", method]))

    monkeypatch.setattr(methods, "ask_worker", here)
    options = [
        "--batch=2",
        "--test-batch=2",
        "--rounds=1",
        "--threads=1",
        f"--root={pictures_root}",
        "--dataset=digits",
    ]
    page = tmp_path / "cost.md"
    methods.run(parser.parse_args(["--methods", "CoOp", "ZeroshotCLIP", "--plain", f"--page={page}", *options]))
    *_, head, _rule, coop, zero_shot = [
        [cell.strip() for cell in line.split("|")][1:-1] for line in capsys.readouterr().out.splitlines()
    ]
    assert head[1:] == [*methods.COLUMNS, *methods.PLAIN]
    coop, zero_shot = (dict(zip(head, row)) for row in (coop, zero_shot))
    assert (coop["method"], coop["parameters"], coop["gib / CoOp"]) == ("CoOp", "768", "1")
    assert float(coop["plain / step"]) > 1  # encoding 77 positions costs more than encoding 10
    assert float(coop["image_gflop"]) == pytest.approx(image_gflop(clip.load("emoji-ViT-S/8")[0].visual), rel=0.03)
    assert float(coop["step_gflop"]) > 2 * float(coop["image_gflop"]) + 2 * float(coop["text_gflop"])
    assert (zero_shot["parameters"], zero_shot["step_s"], zero_shot["step / CoOp"]) == ("0", "-", "-")
    assert zero_shot["image_gflop"] == coop["image_gflop"]
    text = page.read_text()
    steps, fit = text.split("\n## ")[1:]
    assert steps.startswith("Methods that learn by steps")
    assert "| CoOp | 768 |" in steps
    assert "| ZeroshotCLIP | 0 |" in fit


def image_gflop(visual):
    """Operations of a ViT's products for one image, in 1e9."""
    width, tokens = visual.width, len(visual.positional_embedding)
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    patches = 2 * (tokens - 1) * visual.conv1.weight.numel()
    return (len(visual.blocks) * block + patches) / 1e9


def test_methods_that_read_a_language_model_are_marked():
    assert methods.LANGUAGE_MODEL.keys() <= set(methods.methods())
    figures = dict.fromkeys(methods.COLUMNS, 1.5)
    rows = {"CoPrompt": figures, "MaPLe": figures}
    lines = methods.page(rows, {"CoPrompt": "steps", "MaPLe": "test"}, {"batch": 4}).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        *("method", r"CoPrompt\*", "method", "MaPLe")
    ]
    assert "- CoPrompt: sentences about the classes, in training." in lines
    assert not any(line.startswith("- APE") for line in lines)


def test_an_unknown_method_is_named():
    parser = argparse.ArgumentParser()
    methods.add_arguments(parser)
    with pytest.raises(SystemExit, match="no method Nothing; known: ALIGN"):
        methods.run(parser.parse_args(["--methods", "Nothing"]))


def test_loader_benchmark_on_few_pictures(capsys, monkeypatch):
    monkeypatch.setattr(loader, "PICTURE", (50, 40))
    parser = argparse.ArgumentParser()
    loader.add_arguments(parser)
    loader.run(parser.parse_args(["--data=jpeg", "--images=30", "--workers=0", "--rounds=1", "--batch=4"]))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {line["settings"]["loader"] for line in lines} == {"train", "test"}
    figures = {line["figure"]: line["value"] for line in lines if line["settings"]["loader"] == "test"}
    assert figures["ram / none"] == pytest.approx(figures["ram_images_s"] / figures["none_images_s"], rel=1e-2)
    assert min(figures.values()) > 0
    assert lines[0]["settings"]["images"] == 30


def arguments_of(module, *given):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([str(item) for item in given])


def figures_of(capsys):
    """Printed figures: {the settings that vary: {figure: value}}."""
    found = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            found.setdefault(tuple(record["settings"].values()), {})[record["figure"]] = record["value"]
    return found


@pytest.mark.slow
def test_training_with_more_shots_takes_longer(capsys, pictures_root, monkeypatch):
    """One epoch each, in this process: a warm-up of the kernels first, then one batch and five."""

    def here(benchmark, method, options):
        given = [item for key, value in options.items() for item in (f"--{key}", value)]
        return shots.train_once(arguments_of(shots, *given, "--worker", method))

    flags = methods.flags
    monkeypatch.setattr(methods, "ask_worker", here)
    monkeypatch.setattr(
        methods, "flags", lambda *given: [*flags(*given), "OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_EPOCH", "0"]
    )
    given = ("--methods", "CoOp", "--shots", 2, 1, 16, "--threads", 1, "--root", pictures_root, "--dataset", "digits")
    shots.run(arguments_of(shots, *given))
    found = figures_of(capsys)
    assert found["CoOp", 16, "digits"]["train_s"] > found["CoOp", 1, "digits"]["train_s"] > 0


def lines(benchmark, settings, **figures):
    return [
        json.dumps({"benchmark": benchmark, "figure": k, "value": v, "settings": settings}) for k, v in figures.items()
    ]


def test_plot_of_printed_figures(tmp_path):
    text = ["| a table row |"]
    for classes, modes in ((10, 4), (100, 4), (100, 2)):
        settings = {"classes": classes, "modes": modes, "precision": "fp32"}
        text += lines("align_step", settings, step_cpu_s=classes + modes, reference_cpu_s=3 * classes, peak_gib=1.0)
    for k in (1, 4):
        text += lines("shots", {"method": "CoOp", "shots": k, "dataset": "digits"}, train_s=2.0 * k)
    (tmp_path / "out.txt").write_text("\n".join(text))
    found = plot.panels(plot.records([tmp_path / "out.txt"]))
    assert [panel[1:3] for panel in found] == [
        ("classes", "processor seconds"),
        ("classes", "peak memory, GiB"),
        ("modes M = N", "processor seconds"),
        ("shots", "processor seconds"),
    ]
    assert found[0][3] == {"reference": {10: 30, 100: 300}, "fp32": {10: 14, 100: 104}}
    assert found[1][3] == {"fp32": {10: 1.0, 100: 1.0}}
    assert found[2][3]["fp32"] == {2: 102, 4: 104}
    assert found[3][3] == {"CoOp": {1: 2.0, 4: 8.0}}
    plot.run(arguments_of(plot, tmp_path / "out.txt", "--output", tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_plot_without_figures(tmp_path):
    for content, message in (("| a |", "no JSON line"), (lines("positions", {}, all=1)[0], "no curve")):
        (tmp_path / "out.txt").write_text(content)
        with pytest.raises(SystemExit, match=message):
            plot.run(arguments_of(plot, tmp_path / "out.txt", "--output", tmp_path / "plot.png"))
    with pytest.raises(SystemExit, match="nothing"):
        plot.run(arguments_of(plot, tmp_path / "nothing.txt", "--output", tmp_path / "plot.png"))

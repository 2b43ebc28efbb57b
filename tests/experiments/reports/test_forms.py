"""Markdown, CSV, LaTeX, the page and its figures, and the command."""

import csv
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from invented_runs import make_method, make_recipe, write_run
from matplotlib.figure import Figure
from test_logs import write_log

from experiments import expand, load_recipe
from experiments.reports import command
from experiments.reports.cells import H_MEAN
from experiments.reports.compare import compare
from experiments.reports.forms import to_csv, to_html, to_latex, to_markdown
from experiments.reports.plots import panel_svg, plots, save
from experiments.reports.published import AVERAGE, PROVENANCES, PublishedValue

SETS = ("dtd", "food101")
ODD = "A_1 & <b>|*50%*"
GIVEN = {"CLIP": 40.0, "CoOp": 50.0, ODD: 60.0}
VOID = {"meta", "br", "link", "img", "input", "hr"}


def number(dataset, value, provenance="published"):
    return PublishedValue("few_shot", "ViT-B/16", 16, "CoOp", dataset, "accuracy", value, provenance, 'a "table"')


@pytest.fixture
def report(invented):
    methods = (
        make_method("CLIP", shots=(0,), seeds=(1,), trainer="ZeroshotCLIP"),
        make_method("CoOp", shots=(1, 16)),
        make_method(ODD, shots=(1, 16), trainer="ALIGN"),
    )
    recipe = make_recipe(methods=methods, datasets=SETS)
    numbers = [number("dtd", 51.5), number("food101", 55.0, "unverified"), number(AVERAGE, 53.0, "digitised")]

    def accuracy(run):
        if (run.method, run.dataset, run.shots) == (ODD, "food101", 1):
            return None
        return GIVEN[run.method] + run.seed + (10 if run.dataset == "dtd" else 0)

    return invented(recipe, accuracy, numbers).report()


def markdown_rows(text):
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]


def test_markdown(report):
    text = to_markdown(report)
    rows = markdown_rows(text)
    assert len({len(row) for row in rows if row[0] in ("CoOp", "*published*", "*difference*") and len(row) == 4}) == 1
    table = rows[[row[0] for row in rows].index("method", 1) :]  # the table of 16 shots
    coop = [row[0] for row in table].index("CoOp")
    assert table[coop] == ["CoOp", "62.00 ± 1.00", "52.00 ± 1.00", "57.00 ± 1.00"]
    assert table[coop + 1] == ["*published*", "51.50", "55.00 (unverified)", "53.00 (digitised)"]
    assert table[coop + 2] == ["*difference*", "+10.50", "−3.00", "+4.00"]
    assert table[coop + 3] == [r"A_1 & \<b\>\|\*50%\*", "**72.00 ± 1.00**", "**62.00 ± 1.00**", "**67.00 ± 1.00**"]
    assert "seeds 1, 2, 3: new" in text
    assert "python sweep.py invented.yaml --only" in text
    assert "55.00 |" not in text  # never without the mark


def test_csv_has_every_cell_unrounded(report):
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(rows) == 2 * 3 * 3
    (row,) = [r for r in rows if (r["method"], r["dataset"], r["shots"]) == ("CoOp", "food101", "16")]
    assert (row["mean"], row["std"], row["seeds"], row["seeds_asked"]) == ("52.0", "1.0", "3", "3")
    assert (row["published"], row["provenance"], row["source"]) == ("55.0", "unverified", 'a "table"')
    assert row["values"] == "1:51.0 2:52.0 3:53.0"
    assert float(row["ci95_high"]) == pytest.approx(52 + 4.302653 / 3**0.5, abs=1e-5)  # t of 2 degrees of freedom
    (gap,) = [r for r in rows if (r["method"], r["dataset"], r["shots"]) == (ODD, "food101", "1")]
    assert (gap["mean"], gap["seeds"]) == ("", "0")


def test_latex(report):
    text = to_latex(report)
    assert (
        r"A\_1 \& \textless{}b\textgreater{}\textbar{}*50\%* & \textbf{72.00}{\scriptsize$\pm$1.00} & \textbf{62.00}"
        in text
    )
    assert r"CoOp & \underline{62.00}{\scriptsize$\pm$1.00}" in text
    assert r"55.00\textsuperscript{unverified}" in text
    assert r"\quad\textit{difference} & +10.50 & $-$3.00 & +4.00 \\" in text
    assert r"\textsuperscript{unverified}: recalled, read in no source" in text
    assert not re.search(r"55\.00(?!\\textsuperscript)", text)
    for table in re.findall(r"\\begin{tabular}{(.*?)}(.*?)\\end{tabular}", text, re.S):
        for line in table[1].split(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (0, len(table[0]) - 1), line


def test_every_provenance_has_its_words(invented):
    """Also where H is worked out from numbers of several."""
    methods = (make_method("[*] 50%", shots=(16,), trainer="CoOp", published="CoOp"),)
    recipe = replace(make_recipe("base2new", methods, datasets=tuple(PROVENANCES)), name="odd %#_name")
    numbers = [
        PublishedValue("base2new", "ViT-B/16", 16, "CoOp", word, metric, 50.0, word, "a table")
        for word in PROVENANCES
        for metric in ("base", "new", "h")
    ]
    report = invented(recipe, lambda run: 50.0, numbers).report()
    assert report.blocks[2].cells["[*] 50%", H_MEAN].published.provenance == "unverified"
    text = to_latex(report)
    assert all(f"\\textsuperscript{{{word}}}: {meaning}." in text for word, meaning in list(PROVENANCES.items())[1:])
    assert "\\label{tab:odd-name:h-16}" in text
    assert "\n{}[*] 50\\% & " in text  # else \\\\ before it takes [*] for a length
    assert "(measured): measured by this project" in to_markdown(report)
    assert 'class="measured"' in to_html(report, [], Path())


def test_a_name_with_dollars_is_no_formula(invented, tmp_path):
    methods = (make_method("CoOp", shots=(16,)), make_method("V$\\no$", shots=(16,), trainer="VPT"))
    case = invented(make_recipe("base2new", methods, datasets=SETS), lambda run: 50.0)
    for plot in plots(case.report()):
        save(plot, tmp_path / "plot.svg")
        if plot.name.startswith(("bars", "difference", "cost")):
            assert "V$\\no$" in (tmp_path / "plot.svg").read_text()


def test_links_are_urls(invented):
    recipe = make_recipe(methods=(make_method("CoOp", seeds=(1,), variant="50% #1?"),), datasets=("dtd",))
    case = invented(recipe, lambda run: 50.0)
    page = Page(to_html(case.report(), [], case.folder))
    assert "few_shot/dtd/shots_1/CoOp/emoji_50%25%20%231%3F/seed1/log.txt" in page.links


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.ids, self.links, self.text, self.scripts = [], [], [], [], "", 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        self.links += [found[name] for name in ("href", "src", "xlink:href") if name in found]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.scripts += tag == "script"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def test_page(report, tmp_path):
    text = to_html(report, plots(report), tmp_path / "report")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))  # the pictures do not share names
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    outside = [link for link in page.links if link[0] != "#" and not link.startswith("data:")]
    assert outside
    for link in outside:
        assert not Path(link).is_absolute()
        assert (tmp_path / "report" / link).resolve().is_file()
    assert not re.search(r"https?://(?!www\.w3\.org)", text)  # needs nothing else
    assert "<b>|" not in text  # names are escaped
    for table in page.tables:
        assert len({len(row) for row in table}) == 1
    assert page.tables[1][0] == ["method", "DTD", "Food101", "Average"]
    coop = next(row for row in page.tables[1] if row[0] == "CoOp")
    assert coop[2] == "52.00 ± 1.00vs 55.00: −3.00(unverified)"
    assert 'class="unverified"' in text.split("vs 55.00")[0].rsplit("<small", 1)[1]  # and looks different
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert page.scripts == 1


def test_names_are_escaped_in_sentences_too(report, tmp_path):
    """The sentences come from a template of their own, which knows nothing of HTML."""
    report = replace(report, comparisons=tuple(compare(report.blocks, "CoOp", ODD)))
    text = to_html(report, [], tmp_path)
    assert "<b>|" not in text
    assert f"{escape(ODD)} minus CoOp, Wilcoxon" in text


def test_page_without_links(report, tmp_path):
    page = Page(to_html(report, [], tmp_path, links=False))
    assert {link[0] for link in page.links} == {"#"}


def test_figures_of_few_shot(report, tmp_path):
    figures = plots(report)
    assert [figure.name for figure in figures] == [
        "curves", "difference_accuracy_1", "difference_accuracy_16", "cost",
    ]  # fmt: skip
    assert [panel.title for panel in figures[0].panels] == ["Average", "DTD", "Food101"]
    assert {name: marker for name, _, marker in figures[0].key}["CLIP"] == "*"
    save(figures[0], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for name in ("b.svg", "c.svg"):
        save(figures[0], tmp_path / name)
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "c.svg").read_bytes()
    with pytest.raises(ValueError, match="as a baseline, choose from: CLIP, CoOp"):
        plots(report, "VPT")


def test_every_method_looks_different_and_only_those_without_training_are_stars(invented):
    zero_shot = {"shots": (0,), "seeds": (1,), "trainer": "ZeroshotCLIP"}
    methods = [make_method("CLIP", **zero_shot), make_method("CLIP (80)", variant="80", **zero_shot)]
    methods += [make_method(name, shots=(1, 16)) for name in ("TipAdapter", "CoOp")]
    made = invented(make_recipe(methods=tuple(methods), datasets=SETS), lambda run: 50.0 + run.seed)
    for run in made.runs:
        if run.method == "TipAdapter":  # no parameters, but images
            write_run(run, 50.0, epochs=1, trainable_parameters=0)
    key = plots(made.report())[0].key
    assert len({(color, marker) for _, color, marker in key}) == 4
    assert [name for name, _, marker in key if marker == "*"] == ["CLIP", "CLIP (80)"]


def test_heat_maps_have_no_negative_zero(invented):
    methods = (make_method("CLIP", shots=(0,), seeds=(1,), trainer="ZeroshotCLIP"), make_method("CoOp", shots=(16,)))
    values = {"CLIP": 50.0, "CoOp": 49.99}
    report = invented(make_recipe(methods=methods, datasets=("dtd",)), lambda run: values[run.method]).report()
    (heat,) = [figure for figure in plots(report) if figure.name.startswith("difference")]
    axes = Figure().add_subplot()
    heat.panels[0].draw(axes)
    assert [text.get_text() for text in axes.texts] == ["±0.0"]


def test_curves_show_the_means(report):
    axes = Figure().add_subplot()
    plots(report)[0].panels[1].draw(axes)
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]
    assert ([1, 16], [62.0, 62.0]) in lines
    assert ([0], [51.0]) in lines


@pytest.mark.parametrize(("count", "bands"), [(10, 10), (11, 0)])
def test_curves_of_many_methods_have_no_bands(invented, count, bands):
    methods = tuple(make_method(f"CoOp {i}", trainer="CoOp", variant=f"v{i}", shots=(1, 16)) for i in range(count))
    report = invented(make_recipe(methods=methods, datasets=("dtd",)), lambda run: 50.0 + run.seed).report()
    curves = plots(report)[0]
    axes = Figure().add_subplot()
    curves.panels[0].draw(axes)
    assert (len(axes.get_lines()), len(axes.collections)) == (count, bands)
    assert ("bands are one standard deviation" in curves.note) == bool(bands)


def test_figures_of_base_to_new(invented):
    methods = (make_method("CoOp", shots=(16,)), make_method("ALIGN", shots=(16,)))
    recipe = make_recipe("base2new", methods, datasets=SETS)
    report = invented(recipe, lambda run: {"base": 60.0, "new": 40.0}[run.part] + run.seed).report()
    figures = plots(report)
    assert [figure.name for figure in figures] == [
        "bars_16", "difference_base_16", "difference_new_16", "difference_h_16", "cost",
    ]  # fmt: skip
    axes = Figure().add_subplot()
    figures[0].panels[0].draw(axes)
    assert sorted({round(bar.get_width(), 2) for bar in axes.patches}) == [42.0, 50.08, 62.0]  # 2 * 62 * 42 / 104
    for panel in figures[0].panels:
        ElementTree.fromstring(panel_svg(panel, 0))


RECIPE = """\
task: few_shot
title: Invented
config: emoji
datasets: [emoji_food]
shots: [1, 16]
seeds: [1, 2]
methods:
  - {name: Zero-shot CLIP, trainer: ZeroshotCLIP, shots: 0, seeds: 1}
  - CoOp
  - ALIGN
"""


@pytest.fixture
def written(tmp_path):
    (tmp_path / "invented.yaml").write_text(RECIPE)
    runs = expand(load_recipe(tmp_path / "invented.yaml"), output=tmp_path / "runs")
    for run in runs:
        write_run(run, 40.0 + run.shots + run.seed + len(run.method))
    return tmp_path, runs


def call(folder, *flags):
    return command.main(
        [str(folder / "invented.yaml"), "--runs", str(folder / "runs"), "--output", str(folder / "out"), *flags]
    )


def test_command_writes_all_forms(written, capsys):
    folder, _ = written
    assert call(folder, "--compare", "CoOp", "ALIGN", "--format", "md,csv,tex,html,png") == 0
    names = {path.name for path in (folder / "out").iterdir()}
    assert {"invented.md", "invented.csv", "invented.tex", "invented.html", "invented_curves.png"} <= names
    text = (folder / "out" / "invented.md").read_text()
    assert "![Few-shot accuracy](invented_curves.png)" in text
    assert "ALIGN against CoOp" in text
    assert "Wilcoxon signed-rank test" in text
    assert "9 of 9 runs done" in capsys.readouterr().out


def test_every_pair_that_is_compared_has_its_own_table(written):
    folder, _ = written
    assert call(folder, "--compare", "CoOp", "ALIGN", "--compare", "Zero-shot CLIP", "CoOp", "--format", "md,html") == 0
    text = (folder / "out" / "invented.md").read_text()
    first, second = text.split("## CoOp against Zero-shot CLIP")
    first = first.split("## ALIGN against CoOp")[1]
    assert first.strip().startswith("ALIGN minus CoOp, ")
    assert second.strip().startswith("CoOp minus Zero-shot CLIP, ")
    assert first.count("x data set and seed") == second.count("x data set and seed") == 3
    page = (folder / "out" / "invented.html").read_text()
    assert (
        page.index("<h3>ALIGN against CoOp</h3>")
        < page.index("ALIGN minus CoOp")
        < page.index("CoOp minus Zero-shot CLIP")
    )


def test_command_lists_what_is_missing(written, capsys):
    folder, runs = written
    lost = next(run for run in runs if (run.method, run.shots, run.seed) == ("ALIGN", 16, 2))
    shutil.rmtree(lost.output_dir)
    assert call(folder, "--format", "csv") == 1
    out = capsys.readouterr().out
    assert "missing: ALIGN, emoji_food, 16 shots (seed 2: new)\n  python sweep.py" in out
    assert f"--output {folder / 'runs'} --only method=ALIGN,dataset=emoji_food,shots=16" in out


def test_command_refuses_to_mix_protocols(written, capsys):
    folder, runs = written
    odd = next(run for run in runs if run.method == "CoOp")
    write_run(odd, 50.0, {"backbone": "other"})
    assert call(folder) == 2
    assert "backbone differs: 'other' in" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--logs", "nowhere"], 'no folder "nowhere" of logs'),
        (["--compare", "CoOp", "VPT"], 'no method "VPT" to compare'),
        (["--baseline", "VPT"], 'no method "VPT" as a baseline'),
    ],
)
def test_faults_of_the_command(written, capsys, flags, message):
    assert call(written[0], *flags) == 2
    assert message in capsys.readouterr().err


def test_command_reads_logs_too(written, capsys):
    folder, _ = written
    write_log(folder / "logs" / "1", dataset="emoji_food", shots=16)
    write_log(folder / "logs" / "2", dataset="emoji_food", shots=16, seed=2)
    write_log(folder / "logs" / "3", dataset="dtd")
    assert call(folder, "--logs", str(folder / "logs"), "--format", "csv") == 0
    assert "left out: 1 logs of other" in capsys.readouterr().err
    rows = list(csv.DictReader((folder / "out" / "invented.csv").open()))
    (row,) = [r for r in rows if (r["method"], r["dataset"]) == ("CoOp (log)", "emoji_food") and r["seeds"] == "2"]
    assert float(row["mean"]) == pytest.approx(100 * 2342 / 2465)
    assert row["seeds"] == "2"


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome", "chrome"))), None
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [1200, 390])
def test_page_in_a_browser(report, tmp_path, width):
    """Nothing is wider than the window, and a click sorts."""
    text = to_html(report, plots(report), tmp_path)
    probe = """<script>addEventListener('load', () => {
      const table = document.querySelectorAll('table.sort')[1];
      const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
      const before = names();
      table.tHead.querySelectorAll('button')[1].click();
      const page = document.documentElement.scrollWidth;
      document.body.dataset.probe = JSON.stringify({before, after: names(), window: innerWidth, page});
    })</script>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", probe + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--virtual-time-budget=3000"]
    url = (tmp_path / "page.html").as_uri()
    shown = subprocess.run(
        [BROWSER, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(unescape(re.search(r'data-probe="(.*?)"', shown.stdout)[1]))
    assert found["page"] <= found["window"]
    assert found["before"] == ["CLIP", "CoOp", ODD]
    assert found["after"] == [ODD, "CoOp", "CLIP"]

"""The ledger of claims: `python report.py --claims`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dassl.evaluation.evaluator import PREDICTIONS
from experiments import Run, expand
from experiments.recipe import WORK, Recipe
from experiments.reports.cells import shots_text
from experiments.reports.effects import CONTRADICTED, DRAWS, HOLDS, UNCLEAR, Effect, difference, effect, verdict
from experiments.reports.ledger import Claim, Ledger
from experiments.reports.run_results import check_protocols, read_runs
from experiments.reports.tables import markdown_table

NOT_RUN = "not run"

HEAD = f"""\
# Claims of the papers, tested here

Made by `python report.py --claims --output docs` from the runs of the recipes in `recipes/claims/`; the claims are
declared in `recipes/claims/ledger.yaml`. One word there, `scales: [vit_b16]`, or `--scales vit_b16`, makes the same
ledger of CLIP ViT-B/16 on the data sets of the papers (on a GPU; not run by this project).

A claim says that one method is more accurate than another. **Effect**: the difference in points on the same test
images, mean over seeds and data sets, with its 95 % interval: a paired bootstrap over test images and seeds
({DRAWS:,} draws; images once for all seeds, weights of few seeds stretched to Student's t). The choice of data set
and of hyper-parameters is not in it, and nothing is corrected for testing many claims. **Verdict**, by rule:

| verdict | rule |
|---|---|
| {HOLDS} | the whole interval is above 0 |
| {CONTRADICTED} | the whole interval is below 0 |
| {UNCLEAR} | the interval contains 0, or a method that learns has one seed only |
| {NOT_RUN} | results are missing; the command is at the end |

The scales `embedded` and `tokens` are a small model on 64-pixel drawings, with the backbones emoji-ViT-S/8 and
emoji_vit_s8_tokens: a verdict says what holds *here*, not that a paper is wrong. *Paper* is the difference that the
figures of the paper have, in points, where they could be read.
"""


class Finding(NamedTuple):
    """A claim on one scale; `effect` is None if it was not run, and `command` makes what is missing."""

    claim: Claim
    scale: str
    effect: Effect | None
    verdict: str
    missing: tuple[int, ...] = ()
    """Numbers of shots of the runs that are missing or lack predictions."""

    def text(self) -> str:
        """Verdict, effect, interval and seeds; `not run` if there is nothing."""
        if self.effect is None:
            return self.verdict
        mean, low, high, seeds, _ = self.effect
        return (
            f"**{self.verdict}** {mean:+.1f} ({low:+.1f} to {high:+.1f}), {seeds} {'seed' if seeds == 1 else 'seeds'}"
        )


def measure(ledger: Ledger, output: Path | None = None) -> list[Finding]:
    """Every claim on every scale that has its setting.

    Args:
        output: folder of all runs; None: as of `tasks.expand`.

    Raises:
        ValueError: predictions of runs that are compared are not of the same images, or runs were not measured alike.
    """
    runs = {key: expand(recipe, output=output) for key, recipe in ledger.recipes.items()}
    return [
        finding(claim, scale, ledger.recipes[scale, claim.setting], runs[scale, claim.setting])
        for claim in ledger.claims
        for scale in ledger.scales
        if (scale, claim.setting) in runs
    ]


def finding(claim: Claim, scale: str, recipe: Recipe, runs: Sequence[Run]) -> Finding:
    """One claim, from the seeds that both methods have on every data set."""
    runs = [run for run in runs if claim.shots is None or run.shots in (claim.shots, 0)]
    datasets = list(dict.fromkeys(run.dataset for run in runs if run.part == claim.part))
    pair = (claim.better, claim.than)
    asked = {method.name: set(method.seeds) for method in recipe.methods}
    of_pair = read_runs([run for run in runs if run.method in pair and run.part == claim.part])
    done = [entry for entry in of_pair if entry.result is not None and (entry.folder / PREDICTIONS).is_file()]
    check_protocols(done)
    files = {(entry.method, entry.dataset, entry.seed): entry.folder / PREDICTIONS for entry in done}
    whole = {name: {s for s in asked[name] if all((name, d, s) in files for d in datasets)} for name in pair}
    several = [name for name in pair if len(asked[name]) > 1]  # the one run of a method without seeds stands for all
    shared = set.intersection(*(whole[name] for name in several or pair))
    missing = len(done) < len(of_pair)
    shots = tuple(sorted({entry.shots for entry in of_pair if missing}))
    if not shared or not all(whole.values()):
        return Finding(claim, scale, None, NOT_RUN, shots)
    chosen = {name: sorted(shared if name in several else whole[name]) for name in pair}
    found = effect([difference(*([files[name, d, s] for s in chosen[name]] for name in pair)) for d in datasets])
    return Finding(claim, scale, found, UNCLEAR if several and len(shared) == 1 else verdict(found), shots)


def command(recipe: Recipe, findings: Sequence[Finding]) -> str:
    """The sweep that does what is missing of a claim."""
    shots = sorted({number for found in findings for number in found.missing})
    path, claim = recipe.path.resolve(), findings[0].claim
    shown = path.relative_to(WORK).as_posix() if path.is_relative_to(WORK) else str(path)
    only = f"method={claim.better},{claim.than},shots={','.join(map(str, shots))}"
    return shlex.join(["python", "sweep.py", shown, "--only", only])


def to_markdown(ledger: Ledger, findings: Sequence[Finding]) -> str:
    """The page: headline claims, a table per paper, the commands of what was not run."""
    claims: dict[str, list[Claim]] = {}
    for claim in ledger.claims:
        claims.setdefault(claim.text, []).append(claim)
    numbers = {text: str(i) for i, text in enumerate(claims, 1)}
    cells = {(found.claim, found.scale): found.text() for found in findings}

    def table(texts: Sequence[str]) -> str:
        rows = []
        for text in texts:
            group = claims[text]
            first = group[0]
            shots = [f"{shots_text(claim.shots)}: " if claim.shots is not None else "" for claim in group]
            part = f", {first.part}" if first.part in ("base", "new") else ""
            shown = [
                "<br>".join(f"{at}{cells.get((claim, scale), '-')}" for at, claim in zip(shots, group))
                for scale in ledger.scales
            ]
            figures = " / ".join(claim.figure or "-" for claim in dict.fromkeys(group))
            experiment = f"{first.better} - {first.than}; {first.setting}{part}"
            rows.append(
                [numbers[text], text, first.where, "-" if set(figures) <= set("- /") else figures, experiment, *shown]
            )
        return markdown_table(["#", "claim", "where", "paper", "experiment", *ledger.scales], rows, left=99)

    words = (HOLDS, CONTRADICTED, UNCLEAR, NOT_RUN)
    counts = ", ".join(f"{sum(found.verdict == word for found in findings)} {word}" for word in words)
    blocks = [HEAD, f"{len(claims)} claims, {len(findings)} experiments ({', '.join(ledger.scales)}): {counts}.\n"]
    headlines = [text for text, group in claims.items() if group[0].headline]
    blocks += [f"## The most important ones\n\n{table(headlines)}"] if headlines else []
    for paper in dict.fromkeys(claim.paper for claim in ledger.claims):
        blocks.append(f"## {paper}\n\n{table([text for text, group in claims.items() if group[0].paper == paper])}")
    groups: dict[tuple[str, str], list[Finding]] = {}
    for found in findings:
        if found.missing:
            groups.setdefault((found.claim.text, found.scale), []).append(found)
    missing = [
        [numbers[text], scale, f"`{command(ledger.recipes[scale, group[0].claim.setting], group)}`"]
        for (text, scale), group in groups.items()
    ]
    if missing:
        blocks.append(f"## Missing runs\n\n{markdown_table(['#', 'scale', 'command'], missing, left=3)}")
    return "\n".join(block.rstrip("\n") + "\n" for block in blocks)

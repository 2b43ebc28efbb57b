"""Token-level transport for all images and classes at once against one Sinkhorn call per pair, at ALIGN's sizes.

Tokens are random vectors that share a few directions; a larger share spreads their similarities and makes the problems
harder. `spread` is the standard deviation of the similarities. `against POT`, which requirements-dev.txt has, compares
plans alone, without gradients: all problems of a level at once, one call of POT each with the same reg and number of
iterations, and a plain loop; the shapes are those of the token and of the prompt level.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.transport.plain_loops import align_loop, sinkhorn_loop
from trainers.align import align_logits
from transport.sinkhorn import sinkhorn

from .report import show

SHARED = 8  # directions that all tokens share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", type=int, default=100, help="C (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="B (default %(default)s)")
    parser.add_argument("--modes", type=int, default=4, help="M = N (default %(default)s)")
    parser.add_argument("--image-tokens", type=int, default=198, help="J (default %(default)s)")
    parser.add_argument(
        "--text-tokens", type=int, default=10, help="L, the longest; sets have half to all (default 10)"
    )
    parser.add_argument("--width", type=int, default=512, help="E (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument(
        "--pot-problems", type=int, default=500, help="problems solved by POT too (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured, in turn (default %(default)s)")


def features(arguments: argparse.Namespace, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, r, y, s and mask as `align_logits` takes them."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(SHARED, arguments.width, generator=generator)

    def draw(*shape: int) -> Tensor:
        own = torch.randn(*shape, arguments.width, generator=generator)
        return share * torch.randn(*shape, SHARED, generator=generator) @ directions + own

    image, text = (arguments.batch, arguments.modes), (arguments.classes, arguments.modes)
    values = draw(*image), draw(*image, arguments.image_tokens), draw(*text), draw(*text, arguments.text_tokens)
    for value in values:
        value.requires_grad_()
    longest = arguments.text_tokens
    lengths = torch.randint(max(1, longest // 2), longest + 1, text, generator=generator)
    return *values, torch.arange(longest) < lengths.unsqueeze(-1)


def score_ways(x: Tensor, r: Tensor, y: Tensor, s: Tensor, mask: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The scores of `features` in several ways, by the name of their seconds."""
    return {
        "blocks_s": lambda: align_logits(x, r, y, s, mask, 10.0, fast=True).logits,
        "one_block_s": lambda: align_logits(x, r, y, s, mask, 10.0, budget_bytes=1 << 40, fast=True).logits,
        "loop_s": lambda: align_loop(x, r, y, s, mask, 10.0)[0],
        "all_iterations_s": lambda: align_logits(x, r, y, s, mask, 10.0, threshold=1e-30, fast=True).logits,
    }


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of a forward and backward pass, and the scores."""
    start = time.perf_counter()
    scores = function()
    scores.logsumexp(-1).sum().backward()
    return time.perf_counter() - start, scores.detach()


def against_pot(shape: tuple[int, int], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds per problem of one level, ours for all problems at once, and ratios to it."""
    import ot  # of the tests, which the other benchmarks do without

    count, iterations = arguments.pot_problems, 20
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(count, *shape, generator=generator)
    rows, cols = (torch.full((count, size), 1 / size) for size in shape)
    numbers = [x.double().numpy() for x in (rows, cols, cost)]

    def pot() -> Tensor:
        options = {"numItermax": iterations, "stopThr": 0, "warn": False}
        plans = [ot.sinkhorn(b, a, c.T, 0.1, **options) for a, b, c in zip(*numbers)]  # POT fits its columns first
        return torch.stack([torch.from_numpy(plan.T) for plan in plans])

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: sinkhorn(cost, rows, cols, 0.1, iterations, 1e-30).plan,
        "pot": pot,
        "loop": lambda: torch.cat(
            [
                sinkhorn_loop(c[None], a[None], b[None], 0.1, iterations, 1e-30, "marginal")
                for a, b, c in zip(rows, cols, cost)
            ]
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    plans: dict[str, Tensor] = {}
    for _ in range(1 + arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            plans[name] = way()
            found[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values[1:]) / count for name, values in found.items()}
    figures = {"ours_s": seconds["ours"], "pot / ours": seconds["pot"] / seconds["ours"]}
    figures["loop / ours"] = seconds["loop"] / seconds["ours"]
    figures["largest_difference_to_pot"] = float((plans["ours"] - plans["pot"]).abs().max())
    return figures


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    levels = {
        "tokens": (arguments.image_tokens, arguments.text_tokens),
        "prompts": (arguments.modes, arguments.modes),
    }
    for level, shape in levels.items():
        figures = against_pot(shape, arguments)
        settings = {"against POT": level, "shape": list(shape), "problems": arguments.pot_problems}
        show("sinkhorn", {name: float(f"{value:.4g}") for name, value in figures.items()}, settings)
    for share in (0.0, 0.3, 0.8):
        values = features(arguments, share)
        ways = score_ways(*values)
        timed(ways["blocks_s"])
        found = [{name: timed(way) for name, way in ways.items()} for _ in range(arguments.rounds)]
        figures = {name: statistics.median(one[name][0] for one in found) for name in ways}
        figures["times_faster_than_loop"] = figures["loop_s"] / figures["blocks_s"]
        score = align_logits(*values, 10.0, fast=True)
        exact = found[0]["all_iterations_s"][1]
        figures["token_iterations"], figures["prompt_iterations"] = score.iterations.tolist()
        figures["token_entropy"], figures["prompt_entropy"] = float(score.token_entropy), float(score.prompt_entropy)
        figures["largest_error_of_cosine"] = float((score.logits - exact).abs().max()) / 10
        images, texts = (normalize(values[k].detach(), dim=-1).flatten(0, 2) for k in (1, 3))
        settings = {"problems": arguments.batch * arguments.classes * arguments.modes**2}
        settings |= {"rows": arguments.image_tokens, "columns": arguments.text_tokens, "threads": arguments.threads}
        settings["spread"] = round(float((images @ texts[::7].T).std()), 3)
        show("sinkhorn", {name: float(f"{value:.4g}") for name, value in figures.items()}, settings)

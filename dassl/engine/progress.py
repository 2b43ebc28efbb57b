"""Progress bars on stderr: in a terminal, or when TRAIN.PROGRESS asks for them; never in the log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

from dassl.utils import distributed


def progress(cfg: CfgNode, batches: Iterable[Any], title: str, total: int | None = None) -> tqdm:
    """`batches` with a bar that disappears when it is done; without one where nobody would see it."""
    shown = distributed.is_main_process() and (sys.stderr.isatty() or cfg.TRAIN.PROGRESS)
    return tqdm(batches, desc=title, total=total, disable=not shown, leave=False, dynamic_ncols=True, file=sys.stderr)

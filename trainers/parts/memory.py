"""Number of rows the towers take at a time, so that a step stays within a memory budget.

Chunks whose activations do not fit are computed again in the backward pass (`clip.chunks`), so that memory does not
grow with the number of classes; the result is the same to rounding, and nothing here is random or depends on the
machine (free memory, time), so that a run repeats itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from clip import CLIP, Encoded, Prompts
from clip.chunks import Chunks
from clip.text_layout import Bucket, Layout

logger = logging.getLogger(__name__)

GIB = 2**30
RUNTIME = {True: 0.75 * GIB, False: 0.5 * GIB}  # of Python and torch, on the CPU and on other devices
SPARE = 1.15  # what is reserved per byte that is counted: gaps between the blocks of an allocator
CHUNK_POSITIONS = 4096  # a chunk of more tokens is not faster
WORKING = 16  # numbers per position and width that a block needs while it is computed, without gradients
EVALUATION_ROWS = 2048  # sentences that are encoded at a time without gradients


class MemoryPlan:
    """Chunks of both towers.

    Args:
        budget: GiB that a training step or an evaluation may take in all; 0 = no bound.
        text_rows, image_rows: rows of a chunk of the text and of the image tower by hand, of which the last keeps its
            activations; 0 = by the budget.

    Raises:
        ValueError: a number that is negative or not finite.
    """

    def __init__(self, budget: float = 0, text_rows: int = 0, image_rows: int = 0):
        for name, value in (("budget", budget), ("text_rows", text_rows), ("image_rows", image_rows)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, expected a finite number of at least 0; 0 sets no bound")
        self.budget, self.text_rows, self.image_rows = budget * GIB, text_rows, image_rows
        self.known: dict[tuple, float] = {}  # bytes that a row keeps, by tower, length and type
        self.images = 0.0  # bytes that the encoded images of the step keep
        self.warned = False

    def image(self, model: nn.Module, clip: CLIP, tokens: Tensor, prompts: Prompts, rows: int) -> Chunks | None:
        """Chunks of `rows` prompted images with the embedded patches `tokens` (B, L, d).

        Args:
            model: everything that stays in memory.
            clip: its CLIP.
            tokens: of the images.
            prompts: M visual modes, layers (M, m, d).
            rows: B * M.
        """
        length = tokens.shape[1] + prompts.length
        if not self.budget:
            return Chunks(self.image_rows) if self.image_rows else None
        free = self._free(model) - SPARE * 4 * rows * length * clip.visual.output_dim * 4  # features of tokens
        if not torch.is_grad_enabled():
            if self.image_rows:
                return Chunks(self.image_rows)
            working = SPARE * length * clip.visual.width * WORKING * 4
            return Chunks(max(1, min(rows, int(free / 2 / working))))

        def one() -> Encoded:
            first = tuple(None if layer is None else layer[:1] for layer in prompts.layers)
            return clip.visual.encode(tokens[:1], prompts._replace(layers=first))

        each = SPARE * self._bytes(clip, one, ("image", length, tokens.dtype))
        if self.image_rows:  # the text gets what these chunks leave: one that is kept, one that is computed again
            self.images = each * min(rows, 2 * self.image_rows)
            return Chunks(self.image_rows)
        size = max(1, min(rows, CHUNK_POSITIONS // length, int(free / 8 / each)))
        counts = [min(size, rows - k) for k in range(0, rows, size)]
        chunks = self._fit(counts, counts, each, free / 2)
        self.images = each * (rows if chunks is None or chunks.kept is None else chunks.kept + size)
        return chunks

    def text(self, model: nn.Module, clip: CLIP, tokens: bool = True) -> Callable[[Layout], Chunks | None]:
        """Chunks of sentences once their layout is known; `tokens`: features of all positions are needed."""

        def chunks(layout: Layout) -> Chunks | None:
            if self.text_rows:
                return Chunks(self.text_rows)
            if not torch.is_grad_enabled():
                return Chunks(EVALUATION_ROWS)
            return self._text(model, clip, layout, tokens) if self.budget else None

        return chunks

    def _text(self, model: nn.Module, clip: CLIP, layout: Layout, tokens: bool) -> Chunks | None:
        width, blocks = clip.transformer.width, clip.transformer.layers
        longest = max(bucket.end for bucket in layout.buckets) + 1
        features = len(layout.duplicate_of) * longest * clip.visual.output_dim * 4 * (8 if tokens else 3)
        free = self._free(model) - self.images - SPARE * features

        def one() -> Tensor:
            x = torch.zeros(1, longest, width, dtype=clip.dtype, device=clip.token_embedding.weight.device)
            return clip.transformer(x.requires_grad_(), True)

        position = SPARE * self._bytes(clip, one, ("text", longest, clip.dtype)) / longest

        def held(bucket: Bucket, rows: int) -> float:
            """Positions whose activations are held; keys and values of prefix and row are put together."""
            computed = bucket.end + 1 - bucket.prefix
            joined = 2 * width * blocks * 4 * SPARE / position * (bucket.end + 1) if bucket.prefix else 0
            return rows * (computed + joined)

        most = max(held(bucket, 1) for bucket in layout.buckets)
        size = max(1, int(min(CHUNK_POSITIONS, free / 4 / position) / most))
        pieces = [
            (bucket, min(size, len(bucket.rows) - k))
            for bucket in layout.buckets
            for k in range(0, len(bucket.rows), size)
        ]
        return self._fit([held(*piece) for piece in pieces], [count for _, count in pieces], position, free)

    def _fit(self, held: Sequence[float], rows: Sequence[int], each: float, free: float) -> Chunks | None:
        """As many kept chunks as fit into `free` bytes beside one that is being computed; None when all fit.

        Args:
            held: what every chunk keeps, in units of `each` bytes.
            rows: rows of every chunk.
        """
        if sum(held) * each <= free:
            return None
        room, kept = free / each - max(held), 0
        if room < 0 and not self.warned:
            self.warned = True
            logger.warning(
                "TRAIN.MEMORY_BUDGET %.3g GiB is too small for this model: it may not hold", self.budget / GIB
            )
        for one, count in zip(reversed(held), reversed(rows)):
            room -= one
            if room < 0:
                break
            kept += count
        return Chunks(max(rows), max(rows[-1], kept))

    def _free(self, model: nn.Module) -> float:
        """Bytes of the budget that weights, their gradients and momenta, and the runtime leave."""
        used = RUNTIME[next(model.parameters()).device.type == "cpu"]
        for value in (*model.parameters(), *model.buffers()):
            used += value.numel() * value.element_size() * (3 if value.requires_grad else 1)
        return self.budget - used

    def _bytes(self, clip: CLIP, run: Callable[[], Tensor | Encoded], key: tuple) -> float:
        """Bytes that `run`, the forward pass of one row, returns and keeps for the backward pass, without weights."""
        if key not in self.known:
            weights = {value.untyped_storage()._cdata for value in (*clip.parameters(), *clip.buffers())}
            found: dict[int, int] = {}

            def pack(value: Tensor) -> Tensor:
                storage = value.untyped_storage()
                if storage._cdata not in weights:  # tells storages apart on the meta device too
                    found[storage._cdata] = storage.nbytes()
                return value

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                result = run()
            for value in (result,) if isinstance(result, Tensor) else result:
                pack(value)
            self.known[key] = float(sum(found.values()))
        return self.known[key]

"""Comparison of float32 results that holds on any processor.

Kernels add up in different orders (AVX2, AVX-512, oneDNN, several threads), and the rounding of a sum depends on its
largest terms, not on the sum itself: a small element next to large ones carries the error of the large ones. So the
tolerance is a share of the largest magnitude of the expected tensor: 1e-5, or 84 times the float32 rounding 1.2e-7,
which leaves room for sums of about 1,000 terms and a few layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32 = 1e-5


def assert_close(found: Tensor, expected: Tensor, share: float = FLOAT32) -> None:
    """Equality to `share` of the largest magnitude of `expected`."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=share * largest)

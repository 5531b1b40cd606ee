"""Density estimates: kernels for a continuous value, equal-frequency bins for a discrete one."""

from __future__ import annotations

import math

import numpy as np
import torch

from mi.estimators.discrete import discrete
from mi.estimators.measures import Estimate, Measure


def kde(blocks: list[np.ndarray], measure: Measure, width: float | None = None) -> Estimate:
    """A measure of real variables [N, d_i] by leave-one-out Gaussian kernel densities.

    Entropies are resubstituted, H = -E log p̂ (Beirlant et al. 1997), all with one width, so that
    much of their smoothing cancels. Consistent; biased towards 0 at any N, more in many dimensions.

    Args:
        blocks: variables, of unit variance.
        measure: coefficients of entropies.
        width: of the kernel; None is Scott's rule for the joint dimension, N^(-1/(D+4)).
    """
    n, total = len(blocks[0]), sum(b.shape[1] for b in blocks)
    if width is None:
        width = float(n ** (-1 / (total + 4)))
    tensors = [torch.from_numpy(b / width).float() for b in blocks]
    rows = max(1, 8_000_000 // n)
    parts = []
    for start in range(0, n, rows):
        squares = [torch.cdist(t[start : start + rows], t).square_() for t in tensors]
        own = torch.arange(len(squares[0]))
        part = torch.zeros(len(own), dtype=torch.float64)
        for subset, sign in measure.items():
            distance = torch.stack([squares[b] for b in subset]).sum(0)
            distance[own, own + start] = torch.inf
            d = sum(blocks[b].shape[1] for b in subset)
            log_p = torch.logsumexp(-0.5 * distance, 1).double() - math.log(n - 1)
            part -= sign * (log_p - d * (math.log(width) + 0.5 * math.log(2 * math.pi)))
        parts.append(part)
    pointwise = torch.cat(parts).numpy()
    return Estimate(float(pointwise.mean()), pointwise)


def binned(blocks: list[np.ndarray], measure: Measure, bins: int | None = None) -> Estimate:
    """A measure of real variables by bins of equal frequency, Miller-Madow's correction added.

    By data processing the binned variables tell no more about each other than the real ones. In
    more than about log2(N / 5) dimensions even two bins a column leave cells without samples, and
    a value that is far too high.

    Args:
        blocks: variables [N, d_i].
        measure: coefficients of entropies.
        bins: per column; None leaves about 5 samples per cell.
    """
    n, total = len(blocks[0]), sum(b.shape[1] for b in blocks)
    bins = bins or max(2, int((n / 5) ** (1 / total)))
    codes = []
    for block in blocks:
        ranks = block.argsort(0, kind="stable").argsort(0, kind="stable")
        digits = ranks * bins // n
        codes.append(np.unique(digits, axis=0, return_inverse=True)[1].reshape(-1))
    return discrete(codes, measure)

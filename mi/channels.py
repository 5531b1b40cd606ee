"""Capacity: the most information that an input can put through a channel (empowerment)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Capacity(NamedTuple):
    """Capacity of a channel."""

    value: float
    """[nats]; a lower bound, attained by `input`."""
    input: Tensor
    """The input distribution [X], or the powers of the inputs."""
    gap: float
    """The capacity is at most `value + gap`: a certificate, not an estimate."""


def channel_capacity(channel: Tensor, tol: float = 1e-9, max_iterations: int = 100_000) -> Capacity:
    """Max over p(x) of I(X; Y) for p(y|x) given as rows [X, Y]. Blahut 1972, Arimoto 1972.

    Multiplicative steps p ∝ p e^{μ D(p(·|x) ‖ p(y))}, longer than Blahut's μ = 1 as long as the
    information rises (Matz & Duhamel 2004). By duality no input can exceed max_x D.

    Args:
        channel: rows of probabilities [X, Y]; tensor or array.
        tol: largest certified gap [nats].
        max_iterations: before giving up.

    Raises:
        ValueError: rows that are no distributions.
        RuntimeError: the gap stayed above `tol`.
    """
    w = torch.as_tensor(channel).double()
    if w.dim() != 2 or (w < 0).any() or not torch.isfinite(w).all():
        raise ValueError("channel_capacity: expected a matrix of probabilities p(y|x) [X, Y]")
    off = (w.sum(1) - 1).abs().max().item()
    if off > 1e-5:
        raise ValueError(f"channel_capacity: rows must sum to 1, one is off by {off:.2g}")
    w = w / w.sum(1, keepdim=True)
    negative_entropy = torch.special.xlogy(w, w).sum(1)

    def divergences(p: Tensor) -> Tensor:
        return negative_entropy - torch.special.xlogy(w, p @ w).masked_fill(w == 0, 0).sum(1)

    p = torch.full_like(w[:, 0], 1 / len(w))
    d = divergences(p)
    value, step = (p @ d).item(), 1.0
    for _ in range(max_iterations):
        gap = d.max().item() - value
        if gap <= tol:
            return Capacity(value, p, max(gap, 0.0))
        trial = p * torch.exp(step * (d - d.max()))
        trial = (trial / trial.sum()).clamp_min(1e-300)
        trial_d = divergences(trial)
        risen = (trial @ trial_d).item()
        if risen >= value - 1e-15 or step <= 1:
            p, d, value, step = trial, trial_d, risen, step * 1.5
        else:
            step = max(1.0, step / 4)
    raise RuntimeError(f"channel_capacity: gap {gap:.2g} after {max_iterations} iterations")


def water_filling(gains: Tensor, power: float) -> Capacity:
    """Capacity of parallel Gaussian channels y_i = √g_i x_i + N(0, 1) under Σ E x_i² <= power.

    Exact: the best powers fill a common level, max(0, level - 1/g_i).

    Args:
        gains: signal-to-noise ratios g per unit power [C].
        power: shared budget.
    """
    if power < 0 or (gains < 0).any():
        raise ValueError("water_filling: expected gains and power of at least 0")
    g = gains.double()
    if power == 0 or not (g > 0).any():
        return Capacity(0.0, torch.zeros_like(g), 0.0)
    floor = (1 / g[g > 0]).sort().values
    used = torch.arange(1, len(floor) + 1, device=g.device)
    level = (power + floor.cumsum(0)) / used
    active = int((level > floor).nonzero()[-1])
    powers = torch.where(g > 0, (level[active] - 1 / g.clamp_min(1e-300)).clamp_min(0), 0)
    return Capacity(0.5 * torch.log1p(powers * g).sum().item(), powers, 0.0)


def gaussian_capacity(matrix: Tensor, noise: Tensor | float, power: float) -> Capacity:
    """Capacity of y = A x + N(0, Σ) under E‖x‖² <= power: empowerment of a linear system.

    Args:
        matrix: A [Y, X]; for n steps of x' = F x + G u, the blocks F^i G side by side.
        noise: Σ [Y, Y], or a standard deviation.
        power: budget of the input.
    """
    a = torch.as_tensor(matrix).double()
    if isinstance(noise, Tensor) and noise.dim() == 2:
        root = torch.linalg.cholesky(noise.double())
        a = torch.linalg.solve_triangular(root, a, upper=False)
    else:
        a = a / float(noise)
    return water_filling(torch.linalg.svdvals(a).square(), power)


def binary_entropy(p: float) -> float:
    """-p log p - (1-p) log(1-p) [nats]."""
    return 0.0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log1p(-p)

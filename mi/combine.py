"""Combining several objectives into one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lagrangian(nn.Module):
    """Multiplier that holds an expected cost at a limit: max_λ≥0 λ (E[cost] - limit).

    Dual ascent on log λ, so that λ stays positive and moves by a factor; the step is relative to
    the limit and bounded, which makes `rate` independent of the cost's unit.

    Args:
        limit: the largest acceptable E[cost], in the cost's unit.
        initial: first value of λ.
        rate: change of log λ per update for a relative excess of 1.
        bounds: smallest and largest λ; a λ that decayed to nothing while the cost was low would
            come too late when it rises.
    """

    value: Tensor

    def __init__(
        self,
        limit: float,
        initial: float = 1.0,
        rate: float = 0.1,
        bounds: tuple[float, float] = (0.1, 100.0),
    ) -> None:
        super().__init__()
        self.limit, self.rate, self.bounds = limit, rate, bounds
        self.register_buffer("value", torch.tensor(float(initial)))

    @torch.no_grad()
    def update(self, cost: Tensor) -> Tensor:
        """Move λ after observing the mean cost (0-d); return the new λ (0-d)."""
        excess = torch.clamp((cost - self.limit) / max(abs(self.limit), 1e-6), -1.0, 1.0)
        self.value.mul_(torch.exp(self.rate * excess)).clamp_(*self.bounds)
        return self.value

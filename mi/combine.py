"""Combining several objectives into one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lagrangian(nn.Module):
    """Multiplier that holds an expected cost at a limit: max_λ≥0 λ (E[cost] - limit).

    Dual ascent on log λ, so that λ stays positive and moves by a factor; the step is relative to
    the limit and bounded, which makes `rate` and `gain` independent of the cost's unit. Ascent
    alone is integral control, under which the cost swings around the limit, because it answers λ
    late; a proportional term damps the swing (Stooke, Achiam & Abbeel, ICML 2020).

    Args:
        limit: the largest acceptable E[cost], in the cost's unit.
        initial: first value of λ.
        rate: lasting change of log λ per update for a relative excess of 1.
        gain: change of log λ for the relative excess of now; 0 is plain dual ascent. The default
            suits a cost that follows λ slowly, as a policy's does.
        bounds: smallest and largest lasting λ; one that decayed to nothing while the cost was low
            would come too late when it rises.
    """

    value: Tensor
    lasting: Tensor

    def __init__(
        self,
        limit: float,
        initial: float = 1.0,
        rate: float = 0.2,
        gain: float = 2.0,
        bounds: tuple[float, float] = (0.1, 100.0),
    ) -> None:
        super().__init__()
        self.limit, self.rate, self.gain, self.bounds = limit, rate, gain, bounds
        for name in ("value", "lasting"):
            self.register_buffer(name, torch.tensor(float(initial)))

    @torch.no_grad()
    def update(self, cost: Tensor) -> Tensor:
        """Move λ after observing the mean cost (0-d); return the new λ (0-d)."""
        excess = torch.clamp((cost - self.limit) / max(abs(self.limit), 1e-6), -1.0, 1.0)
        self.lasting.mul_(torch.exp(self.rate * excess)).clamp_(*self.bounds)
        return self.value.copy_(self.lasting * torch.exp(self.gain * excess))

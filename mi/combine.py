"""Combining several objectives into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


class Lagrangian(nn.Module):
    """Multiplier that holds an expected cost at a limit: max_λ≥0 λ (E[cost] - limit).

    Dual ascent on log λ, so that λ stays positive and moves by a factor; the step is relative to
    the limit and bounded, which makes `rate` and `gain` independent of the cost's unit (but where
    the limit is 0, it is the excess itself). Ascent alone is integral control, under which the cost
    swings around the limit, because it answers λ late; a proportional term damps the swing (Stooke,
    Achiam & Abbeel, ICML 2020).

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
        excess = torch.clamp((cost - self.limit) / (abs(self.limit) or 1.0), -1.0, 1.0)
        self.lasting.mul_(torch.exp(self.rate * excess)).clamp_(*self.bounds)
        return self.value.copy_(self.lasting * torch.exp(self.gain * excess))


def min_norm_weights(gradients: Tensor, iterations: int = 100) -> Tensor:
    """Weights w >= 0, Σ w = 1, of the shortest Σ w_k g_k, [K].

    Each step moves weight from the gradient that the sum agrees with most to the one it agrees with
    least, as far as the norm falls (pairwise Frank-Wolfe, which converges linearly). No
    synchronisation with the device.

    Args:
        gradients: [K, P].
        iterations: steps; two gradients need one.
    """
    gram = (gradients @ gradients.T).double()
    w = torch.full_like(gram[0], 1 / len(gram))
    for _ in range(iterations):
        slopes = gram @ w
        to = slopes.argmin()
        source = slopes.masked_fill(w <= 0, -torch.inf).argmax()
        curvature = gram[to, to] + gram[source, source] - 2 * gram[to, source]
        step = (slopes[source] - slopes[to]) / curvature.clamp_min(1e-30)
        step = torch.minimum(step, w[source])
        w = w.scatter_add(0, torch.stack([to, source]), torch.stack([step, -step]))
    return w.to(gradients.dtype)


def mgda(losses: Sequence[Tensor], parameters: Iterable[Tensor]) -> Tensor:
    """Weights [K] under which no loss rises, to first order: of their shortest gradient.

    Multiple-gradient descent (Désidéri 2012). At a Pareto-stationary point that gradient is 0.

    Example, several bounds through one encoder::

        losses = [-contrast, decorrelation, reconstruction]
        (mgda(losses, encoder.parameters()) * torch.stack(losses)).sum().backward()

    Args:
        losses: K losses, 0-d.
        parameters: that all of them share; the graph is kept for the backward pass to come.
    """
    parameters = [p for p in parameters if p.requires_grad]
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)
        ]
        rows.append(torch.cat([g.flatten() for g in filled]))
    return min_norm_weights(torch.stack(rows))


T = TypeVar("T")


def bilevel_search(
    grid: Sequence[T], solve: Callable[[T], Any], score: Callable[[Any], float]
) -> tuple[T, dict[T, float]]:
    """The setting whose solution scores best, and all scores; PIM's choice of λ.

    Args:
        grid: settings of the inner problem, hashable.
        solve: the inner problem (unsupervised training with λ, say).
        score: the outer one (accuracy on the few labels), higher is better.
    """
    if not grid:
        raise ValueError("bilevel_search: expected at least one setting")
    scores = {setting: float(score(solve(setting))) for setting in grid}
    return max(scores, key=scores.__getitem__), scores

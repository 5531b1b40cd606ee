"""Information among many variables, as a sum of information between two."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mi.neural import MIEstimator

Margin = tuple[int, ...]


class FactorizedInformation(nn.Module):
    """Mean over margins of KL(p(x_λ) ‖ Π p(x_i)): what n variables share, at pairwise cost.

    A margin of two is a mutual information; a larger one is the total correlation of its members by
    the chain rule, I(x_1; x_2) + I([x_1, x_2]; x_3) + …, one estimator per step. The margin of all
    variables is the total correlation itself.

    Example, coordination of agents, or (with an upper bound) skills that do not overlap::

        make = lambda d, e: InfoNCE(SeparableCritic(d, e))
        team = FactorizedInformation([d] * agents, "pairs", make)
        loss = team.loss(states)                                   # list of [B, d]
        reward = team.pointwise(states)                            # [B]

        apart = FactorizedInformation([d] * K, "pairs", lambda d, e: CLUB(GaussianDecoder(d, e)))
        loss = apart.loss(codes.detach()) + apart.bound(codes, minimize=True)

    Args:
        sizes: of the variables.
        margins: all "pairs"; "cross" pairs of a first and a second half (as many of each); or the
            indices of each margin.
        make: an estimator from the sizes of two variables.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        margins: Literal["pairs", "cross"] | Sequence[Margin],
        make: Callable[[int, int], MIEstimator],
    ) -> None:
        super().__init__()
        n = len(sizes)
        if margins == "pairs":
            margins = list(itertools.combinations(range(n), 2))
        elif margins == "cross":
            margins = list(itertools.product(range(n // 2), range(n // 2, n)))
        self.margins: list[Margin] = [tuple(m) for m in margins]  # type: ignore[arg-type]
        bad = [m for m in self.margins if len(set(m)) < 2 or not set(m) <= set(range(n))]
        if bad or not self.margins:
            raise ValueError(
                f"FactorizedInformation: expected margins of at least 2 of {n} variables, got "
                f"{bad or self.margins}"
            )
        self.estimators = nn.ModuleList(
            make(sum(sizes[i] for i in m[:k]), sizes[m[k]])
            for m in self.margins
            for k in range(1, len(m))
        )

    def _terms(self, call: Callable[[MIEstimator, Tensor, Tensor], Tensor], xs) -> Tensor:
        """Of each margin, [margins, …]."""
        estimators, terms = iter(self.estimators), []
        for margin in self.margins:
            steps = [
                call(next(estimators), torch.cat([xs[i] for i in margin[:k]], -1), xs[margin[k]])  # type: ignore[arg-type]
                for k in range(1, len(margin))
            ]
            terms.append(torch.stack(steps).sum(0))
        return torch.stack(terms)

    def loss(self, xs: Sequence[Tensor]) -> Tensor:
        """Mean loss of the estimators, 0-d.

        Args:
            xs: variables, [B, d_i] each.
        """
        return self._terms(lambda e, x, y: e.loss(x, y), xs).mean()

    def bound(self, xs: Sequence[Tensor], minimize: bool = False, allow: bool = False) -> Tensor:
        """Mean over margins [nats], 0-d, differentiable for encoders; see `MIEstimator.bound`."""
        return self.each(xs, minimize, allow).mean()

    def each(self, xs: Sequence[Tensor], minimize: bool = False, allow: bool = False) -> Tensor:
        """The same of each margin, [margins]."""
        return self._terms(lambda e, x, y: e.bound(x, y, minimize=minimize, allow=allow), xs)

    def pointwise(self, xs: Sequence[Tensor]) -> Tensor:
        """Each sample's share of the mean, [B], detached: a reward."""
        return self._terms(lambda e, x, y: e.pointwise(x, y), xs).mean(0)

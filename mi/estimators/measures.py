"""Information quantities as sums of entropies, which every sample estimator understands.

A measure maps subsets of variables to the coefficient of their joint entropy. Mutual information,
conditional information and total correlation differ in nothing else, so an estimator that can value
a measure has them all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Measure = dict[tuple[int, ...], int]

MUTUAL: Measure = {(0,): 1, (1,): 1, (0, 1): -1}
"""I(X; Y) of variables (x, y)."""
CONDITIONAL: Measure = {(0, 2): 1, (1, 2): 1, (2,): -1, (0, 1, 2): -1}
"""I(X; Y | Z) of variables (x, y, z)."""


def total(variables: int) -> Measure:
    """KL(p(x_1 … x_m) ‖ Π p(x_i))."""
    return {**{(i,): 1 for i in range(variables)}, tuple(range(variables)): -1}


def dual_total(variables: int) -> Measure:
    """H(X) - Σ H(x_i | all others): what the variables share, counted once. Han 1975."""
    every = tuple(range(variables))
    rest = {tuple(j for j in every if j != i): 1 for i in every}
    return {**rest, every: 1 - variables} if variables > 2 else dict(MUTUAL)


def total_less_dual(variables: int) -> Measure:
    """The O-information of at least 3 variables. Rosas et al. 2019."""
    every = tuple(range(variables))
    rest = {tuple(j for j in every if j != i): -1 for i in every}
    return {**{(i,): 1 for i in every}, **rest, every: variables - 2}


class Estimate(NamedTuple):
    """What a sample estimator makes of a measure."""

    value: float
    """[nats]"""
    pointwise: np.ndarray
    """Each sample's contribution [N]; their spread gives the standard error."""
    floor: float = 0.0
    """Standard deviation of the value that remains where all contributions are equal [nats]."""
    drift: float = 0.0
    """What infinitely many samples would add to the value, as far as half of them tell [nats]."""

    @property
    def stderr(self) -> float:
        """Standard error of the value [nats], of independent samples."""
        return self.block_stderr(1)

    def block_stderr(self, block: int) -> float:
        """Standard error [nats] of samples in order that depend on `block` - 1 others before them.

        The limit of the moving-block bootstrap of the mean contribution (Künsch 1989), for which
        nothing needs to be drawn.
        """
        n, sums = len(self.pointwise), np.concatenate([[0.0], np.cumsum(self.pointwise)])
        means = (sums[block:] - sums[:-block]) / block
        return float(np.sqrt(block / n * means.var() + self.floor**2))

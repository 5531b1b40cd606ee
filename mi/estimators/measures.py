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


class Estimate(NamedTuple):
    """What a sample estimator makes of a measure."""

    value: float
    """[nats]"""
    pointwise: np.ndarray
    """Each sample's contribution [N]; their spread gives the standard error."""
    floor: float = 0.0
    """Standard deviation of the value that remains where all contributions are equal [nats]."""

    @property
    def stderr(self) -> float:
        """Standard error of the value [nats]."""
        n = len(self.pointwise)
        return float(np.sqrt(self.pointwise.var() / n + self.floor**2))

"""Information given a third variable, by a classifier against negatives of nearly the same kind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from mi.critics import ConcatCritic
from mi.estimators.measures import Estimate
from mi.negatives import nearest_condition
from mi.neural import JSD, halves, seeded


class _Packed(JSD):
    """JSD of y whose negatives stand in the columns beside it, [N, (1 + K) e]."""

    def __init__(self, x_size: int, y_size: int) -> None:
        super().__init__(ConcatCritic(x_size, y_size))
        self.y_size = y_size

    def _score(self, x, y, negatives, options):
        own, others = y[..., : self.y_size], y[..., self.y_size :]
        return super()._score(x, own, others.unflatten(-1, (-1, self.y_size)), options)


def ccmi(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, seed: int, neighbors: int = 3, **fit: Any
) -> Estimate:
    """I(X; Y | Z) by a classifier of samples against pairs whose y comes from a neighbour in z.

    Mukherjee, Asnani & Kannan 2020 (CCMI), read by the mean log-ratio and cross-fitted: each half
    is judged by a classifier of the other. Dependence that remains within the distance to the
    neighbours in z is counted as well, so it errs upwards where z has many dimensions.

    Args:
        x: [N, d], of unit variance.
        y: [N, e].
        z: [N, f].
        seed: of halves, networks and batches.
        neighbors: K, negatives per sample.
        fit: arguments of `MIEstimator.fit`.
    """
    parts = halves(np.concatenate([x, z], 1), y, seed)
    results = []
    for fold, (x_fit, y_fit, x_judge, y_judge) in enumerate(parts):
        packed = []
        for a, b in ((x_fit, y_fit), (x_judge, y_judge)):
            rows = nearest_condition(a[:, x.shape[1] :], neighbors)
            packed.append(torch.cat([b, b[rows].flatten(1)], 1))
        estimator = seeded(seed + fold, lambda: _Packed(x.shape[1] + z.shape[1], y.shape[1]))
        estimator.fit(x_fit, packed[0], seed=seed, **fit)
        results.append(estimator.estimate(x_judge, packed[1]))
    value = float(np.mean([r.value for r in results]))
    return Estimate(value, np.full(len(x), value), math.hypot(*(r.stderr for r in results)) / 2)

"""Nearest-neighbour estimators (scipy's k-d trees)."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree
from scipy.special import digamma
from torch import Tensor


def discrete_continuous(x: Tensor, label: Tensor, neighbors: int = 3) -> float:
    """I(X; Y) of continuous x and discrete y [nats]: Ross, PLoS ONE 2014, eq. 2.

    Samples whose neighbours are all at the same point (where walls stop them, say) count these
    instead, as Gao et al. 2017 do. A consistent estimate, not a bound; biased towards 0 in many
    dimensions. Chebyshev distances between standardised features.

    Args:
        x: samples [E, D].
        label: integers [E]; a label that occurs once says nothing and is left out.
        neighbors: k, the neighbours of the same label that set a sample's radius.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.dim() != 2 or label.shape != x.shape[:1]:
        raise ValueError(
            f"discrete_continuous: expected [E, D] and [E], got {tuple(x.shape)}, "
            f"{tuple(label.shape)}"
        )
    points, labels = x.detach().cpu().double().numpy(), label.detach().cpu().numpy()
    points = (points - points.mean(0)) / np.maximum(points.std(0), 1e-12)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = counts[inverse] > 1
    points, inverse = points[kept], inverse[kept]
    radius, used = np.zeros(len(points)), np.zeros(len(points))
    for value in np.unique(inverse):
        rows = np.flatnonzero(inverse == value)
        k = min(neighbors, len(rows) - 1)
        tree = KDTree(points[rows])
        distance, _ = tree.query(points[rows], [k + 1], p=np.inf)
        radius[rows], used[rows] = np.nextafter(distance[:, 0], 0), k
        atoms = rows[distance[:, 0] == 0]
        used[atoms] = tree.query_ball_point(points[atoms], 0, p=np.inf, return_length=True)
    tree = KDTree(points)
    within = tree.query_ball_point(points, radius, p=np.inf, return_length=True)  # with itself
    value = digamma(len(points)) + np.mean(digamma(used) - digamma(counts[inverse]))
    return float(value - np.mean(digamma(within)))

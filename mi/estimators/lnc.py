"""Nearest neighbours where the density is not flat: the local non-uniformity correction."""

from __future__ import annotations

import functools

import numpy as np
from scipy.spatial import KDTree

from mi.estimators.knn import knn
from mi.estimators.measures import Estimate, Measure


def lnc(blocks: list[np.ndarray], measure: Measure, neighbors: int = 5) -> Estimate:
    """KSG plus what its boxes miss of strong dependence. Gao, Ver Steeg & Galstyan 2015.

    KSG takes the density within the box of the k nearest neighbours for uniform; along a thin ridge
    it is not. Where the neighbours' own box, turned to their principal axes, is much smaller than
    the upright one, the logarithm of the ratio of volumes is added.

    Args:
        blocks: variables [N, d_i], scaled alike.
        measure: of an unconditional information, MUTUAL or a total correlation.
        neighbors: k; more than the joint dimension, for the axes to be seen.
    """
    joint = np.concatenate(blocks, 1)
    d = joint.shape[1]
    neighbors = max(neighbors, d + 1)
    plain = knn(blocks, measure, neighbors, "chebyshev")
    near = np.asarray(KDTree(joint).query(joint, neighbors + 1, p=np.inf)[1])[:, 1:]
    log_ratio = _log_volume_ratio(joint[near] - joint[:, None])
    correction = np.where(log_ratio < np.log(_threshold(neighbors, d)), -log_ratio, 0.0)
    pointwise = plain.pointwise + correction
    return Estimate(float(pointwise.mean()), pointwise)


def _log_volume_ratio(offsets: np.ndarray) -> np.ndarray:
    """Log of turned over upright volume, [N], of the neighbours' offsets [N, k, d]."""
    axes = np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))[1]
    turned = np.abs(offsets @ axes).max(1)
    upright = np.abs(offsets).max(1)
    tiny = np.finfo(float).tiny
    return (np.log(np.maximum(turned, tiny)) - np.log(np.maximum(upright, tiny))).sum(1)


@functools.cache
def _threshold(neighbors: int, d: int) -> float:
    """Ratio that uniform neighbours fall below once in 200 times; the paper's ε = 0.005."""
    offsets = np.random.default_rng(0).uniform(-1, 1, (20_000, neighbors, d))
    return float(np.exp(np.quantile(_log_volume_ratio(offsets), 0.005)))

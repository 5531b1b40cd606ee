"""Closed forms: jointly Gaussian variables (CCA), Gaussian copulas, Student-t copulas."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

from mi.estimators.measures import MUTUAL, Estimate, Measure


def gaussian_mi(x: Tensor, y: Tensor) -> Tensor:
    """I(X; Y) of jointly Gaussian x [N, d], y [N, e]: -½ Σ log(1 - ρ_i²), bias removed. 0-d [nats].

    ρ are the canonical correlations. Differentiable, invariant to invertible linear maps of either
    side, no critic to train.

    Raises:
        ValueError: no more samples than dimensions.
    """
    blocks = [x, y]
    columns, moments = _columns(blocks), _covariance(torch.cat(blocks, 1))
    n = len(x)
    value = x.new_zeros(())
    for subset, sign in MUTUAL.items():
        index = [c for b in subset for c in columns[b]]
        value = value + sign * 0.5 * torch.linalg.slogdet(moments[index][:, index])[1]
    return value - _bias(MUTUAL, columns, n)


def gaussian(blocks: list[np.ndarray], measure: Measure) -> Estimate:
    """A measure of jointly Gaussian variables [N, d_i]; exact for them.

    The expectation of the log-determinant of a Wishart matrix is known: its excess is subtracted
    (d_x d_y / 2N of a mutual information, to first order).
    """
    x = torch.from_numpy(np.concatenate(blocks, 1))
    return _estimate(x - x.mean(0), _covariance(x).numpy(), None, blocks, measure)


def gaussian_copula(blocks: list[np.ndarray], measure: Measure) -> Estimate:
    """The same of normal scores: exact for any monotone maps of single Gaussian coordinates."""
    return gaussian([normal_scores(b) for b in blocks], measure)


class Copula(NamedTuple):
    """An elliptical copula fitted to columns."""

    correlation: np.ndarray
    """[D, D]"""
    dof: float
    """ν of Student's t; infinite for the Gaussian copula."""

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Normal scores of n samples [n, D]."""
        z = rng.standard_normal((n, len(self.correlation))) @ np.linalg.cholesky(self.correlation).T
        if math.isinf(self.dof):
            return z
        return normal_scores(z / np.sqrt(rng.chisquare(self.dof, (n, 1)) / self.dof))


def fit_copula(x: np.ndarray) -> Copula:
    """The likeliest Student-t copula of columns x [N, D]; Gaussian unless t earns its parameter."""
    order, n = _ranks(x), len(x)
    correlation = np.array(_covariance(torch.from_numpy(normal_scores(x))))
    scale = np.sqrt(np.diag(correlation))
    correlation = correlation / np.outer(scale, scale)
    plain = _log_likelihood(normal_scores(x), correlation, math.inf).mean()
    fitted: dict[float, np.ndarray] = {}
    start = correlation

    def loss(log_dof: float) -> float:
        nonlocal start
        dof = math.exp(log_dof)
        z = special.stdtrit(dof, (np.arange(n) + 0.5) / n)[order]
        fitted[log_dof] = start = _scatter(z, dof, start)
        return -_log_likelihood(z, start, dof).mean()

    best = optimize.minimize_scalar(
        loss, bounds=(math.log(0.5), math.log(60)), method="bounded", options={"xatol": 0.05}
    )
    if -best.fun - plain < 2 / n or x.shape[1] < 2:
        return Copula(correlation, math.inf)
    return Copula(fitted[best.x], math.exp(best.x))


def student_copula(
    blocks: list[np.ndarray], measure: Measure, copula: Copula | None = None
) -> Estimate:
    """A measure of variables whose copula is Student's t, or Gaussian as its limit; any marginals.

    Exact for heavy-tailed elliptical data, where neural and nearest-neighbour estimates fail. The
    closed form is Arellano-Valle et al. 2013's.
    """
    x = np.concatenate(blocks, 1)
    copula = copula or fit_copula(x)
    z = normal_scores(x)
    if not math.isinf(copula.dof):
        z = special.stdtrit(copula.dof, (np.arange(len(x)) + 0.5) / len(x))[_ranks(x)]
    return _estimate(torch.from_numpy(z), copula.correlation, copula.dof, blocks, measure)


def normal_scores(x: np.ndarray) -> np.ndarray:
    """Each column's ranks as quantiles of N(0, 1) [N, d]: marginals gone, dependence kept."""
    return special.ndtri((np.arange(len(x)) + 0.5) / len(x))[_ranks(x)]


def _ranks(x: np.ndarray) -> np.ndarray:
    return x.argsort(0, kind="stable").argsort(0, kind="stable")


def _columns(blocks) -> list[list[int]]:
    ends = np.cumsum([0, *(b.shape[1] for b in blocks)]).tolist()
    return [list(range(a, b)) for a, b in itertools.pairwise(ends)]


def _covariance(x: Tensor) -> Tensor:
    """Of [N, D], scaled to unit variances, with a ridge that lets repeated columns cancel."""
    if len(x) <= x.shape[1] + 1:
        raise ValueError(f"gaussian: expected more than {x.shape[1] + 1} samples, got {len(x)}")
    x = (x - x.mean(0)) / x.std(0)
    return x.T @ x / (len(x) - 1) + 1e-10 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def _bias(measure: Measure, columns: list[list[int]], n: int) -> float:
    """Expected excess of a sum of ½ log-determinants of sample covariances."""
    value = 0.0
    for subset, sign in measure.items():
        size = sum(len(columns[b]) for b in subset)
        value += sign * 0.5 * special.digamma((n - np.arange(1, size + 1)) / 2).sum()
    return value


def _estimate(
    z: Tensor, matrix: np.ndarray, dof: float | None, blocks: list[np.ndarray], measure: Measure
) -> Estimate:
    """From centred or copula scores z [N, D] and their matrix; dof None or infinite is Gaussian."""
    columns, n = _columns(blocks), len(z)
    if dof is None:
        z = z / z.std(0)
    value, pointwise = 0.0, np.zeros(n)
    for subset, sign in measure.items():
        index = [c for b in subset for c in columns[b]]
        log_p = _log_density(z[:, index].numpy(), matrix[np.ix_(index, index)], dof or math.inf)
        pointwise -= sign * log_p
        half_log_det = 0.5 * np.linalg.slogdet(matrix[np.ix_(index, index)])[1]
        value += sign * (half_log_det + _standard_entropy(len(index), dof or math.inf))
    value -= _bias(measure, columns, n)
    freedom = 1
    for block in columns:
        freedom *= len(block)
    return Estimate(float(value), pointwise, math.sqrt(freedom / 2) / n)


def _standard_entropy(d: int, dof: float) -> float:
    """Of d dimensions with unit scatter [nats]."""
    if math.isinf(dof):
        return 0.5 * d * math.log(2 * math.pi * math.e)
    half, more = dof / 2, (dof + d) / 2
    constant = special.gammaln(half) - special.gammaln(more) + 0.5 * d * math.log(dof * math.pi)
    return float(constant + more * (special.digamma(more) - special.digamma(half)))


def _log_density(z: np.ndarray, matrix: np.ndarray, dof: float) -> np.ndarray:
    """Of N(0, matrix) or of Student's t with this scatter, [N]."""
    root = np.linalg.cholesky(matrix)
    distance = np.square(np.linalg.solve(root, z.T)).sum(0)
    log_det, d = 2 * np.log(np.diag(root)).sum(), z.shape[1]
    if math.isinf(dof):
        return -0.5 * (distance + log_det + d * math.log(2 * math.pi))
    half, more = dof / 2, (dof + d) / 2
    constant = special.gammaln(more) - special.gammaln(half) - 0.5 * d * math.log(dof * math.pi)
    return constant - 0.5 * log_det - more * np.log1p(distance / dof)


def _log_likelihood(z: np.ndarray, correlation: np.ndarray, dof: float) -> np.ndarray:
    """Of the copula: joint density over the product of marginals, [N]."""
    one = np.eye(1)
    alone = sum(_log_density(z[:, [j]], one, dof) for j in range(z.shape[1]))
    return _log_density(z, correlation, dof) - alone


def _scatter(z: np.ndarray, dof: float, start: np.ndarray, steps: int = 6) -> np.ndarray:
    """Correlation matrix of Student's t by expectation maximisation from scores [N, D]."""
    matrix = start
    for _ in range(steps):
        distance = np.square(np.linalg.solve(np.linalg.cholesky(matrix), z.T)).sum(0)
        weight = (dof + z.shape[1]) / (dof + distance)
        matrix = (z * weight[:, None]).T @ z
        scale = np.sqrt(np.diag(matrix))
        matrix = matrix / np.outer(scale, scale)
        matrix += 1e-10 * np.eye(len(matrix))
    return matrix

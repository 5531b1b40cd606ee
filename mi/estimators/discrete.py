"""Discrete variables: entropies from counts, and what counts do not show."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy import special

from mi.estimators.measures import Estimate, Measure

Correction = Literal["plugin", "miller_madow", "grassberger", "chao_shen", "nsb"]


def entropy(counts: np.ndarray, correction: Correction = "miller_madow", support: int = 0) -> float:
    """Entropy [nats] of the distribution that the counts [K] were drawn from.

    Args:
        counts: how often each value occurred; zeros are ignored.
        correction: `plugin` (biased down by about (K-1)/2N), `miller_madow` (adds that, of the seen
            values), `grassberger` (2003), `chao_shen` (2003; unseen values by coverage), `nsb`
            (Nemenman, Shafee & Bialek 2002; a prior that is flat in the entropy).
        support: number of possible values, for `nsb`; 0 takes the seen ones.
    """
    counts = counts[counts > 0].astype(float)
    n, k = counts.sum(), len(counts)
    p = counts / n
    if correction == "plugin":
        return float(-(p * np.log(p)).sum())
    if correction == "miller_madow":
        return float(-(p * np.log(p)).sum() + (k - 1) / (2 * n))
    if correction == "grassberger":
        half = special.digamma((counts + 1) / 2) - special.digamma(counts / 2)
        g = special.digamma(counts) + 0.5 * np.where(counts % 2, -half, half)
        return float(math.log(n) - (p * g).sum())
    if correction == "chao_shen":
        singles = (counts == 1).sum()
        coverage = 1 - min(singles, n - 1) / n  # all singletons would leave no coverage at all
        q = coverage * p
        return float(-(q * np.log(q) / -np.expm1(n * np.log1p(-np.minimum(q, 1 - 1e-15)))).sum())
    if correction == "nsb":
        return _nsb(counts, max(support, k))
    raise ValueError(f"entropy: unknown correction {correction!r}")


def discrete(
    blocks: list[np.ndarray], measure: Measure, correction: Correction = "miller_madow"
) -> Estimate:
    """A measure of integer variables [N], as a sum of corrected entropies."""
    n = len(blocks[0])
    codes = [np.unique(b, return_inverse=True)[1].reshape(-1) for b in blocks]
    sizes = [int(c.max()) + 1 for c in codes]
    value, pointwise = 0.0, np.zeros(n)
    for subset, sign in measure.items():
        code, counts = _joint([codes[b] for b in subset])
        support = math.prod(sizes[b] for b in subset)
        value += sign * entropy(counts, correction, support)
        pointwise -= sign * np.log(counts[code] / n)
    freedom = math.prod(size - 1 for size in sizes)
    return Estimate(value, pointwise, math.sqrt(min(freedom, n) / 2) / n)


def _joint(codes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Code of each sample's combination [N], and counts of the combinations."""
    combined = codes[0]
    for code in codes[1:]:  # renumbered each time, so that products do not overflow
        combined = np.unique(combined * (code.max() + 1) + code, return_inverse=True)[1]
    return combined.reshape(-1), np.bincount(combined.reshape(-1))


def _nsb(counts: np.ndarray, support: int) -> float:
    """Posterior mean over Dirichlet concentrations β, weighted for a flat prior of the entropy."""
    if support == 1:
        return 0.0
    n, zeros = counts.sum(), support - len(counts)
    beta = np.exp(np.linspace(math.log(1e-6 / support), math.log(1e4), 400))
    total = support * beta
    slope = support * special.polygamma(1, total + 1) - special.polygamma(1, beta + 1)
    gained = special.gammaln(counts[:, None] + beta).sum(0) - len(counts) * special.gammaln(beta)
    log_w = special.gammaln(total) - special.gammaln(n + total) + gained
    log_w += np.log(np.maximum(slope, 1e-300)) + np.log(beta)  # dβ = β d log β
    weight = np.exp(log_w - log_w.max())
    share = (counts[:, None] + beta) / (n + total)
    mean = special.digamma(n + total + 1)
    mean = mean - (share * special.digamma(counts[:, None] + beta + 1)).sum(0)
    mean = mean - zeros * beta / (n + total) * special.digamma(beta + 1)
    return float((weight * mean).sum() / weight.sum())

"""Nearest-neighbour estimators: k-d trees in few dimensions, matrix products in many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from scipy.spatial import KDTree
from scipy.special import digamma
from torch import Tensor

from mi.estimators.measures import Estimate, Measure

Metric = Literal["auto", "chebyshev", "euclidean"]
_TREE_DIMENSIONS = 6
"""Joint dimensions up to which trees are faster than all distances (10,000 samples)."""

_PARTS = 10
"""Parts whose values tell the error of all samples, where contributions do not."""

_CHUNK = 500_000
"""Distances at once: few enough to stay in a processor's cache."""


def knn(
    blocks: list[np.ndarray],
    measure: Measure,
    neighbors: int = 3,
    metric: Metric = "auto",
    device: torch.device | str = "cpu",
) -> Estimate:
    """A measure of continuous or mixed variables [N, d_i] by distances to nearest neighbours.

    One rule covers KSG-1 (Kraskov et al. 2004, eq. 8), its conditional form (Frenzel & Pompe
    2007), total correlation (eq. 23), and ties, where the neighbours at distance 0 are counted
    instead (Gao et al. 2017; Mesner & Shalizi 2019): each sample contributes
    ψ(k) - Σ_S c_S ψ(n_S) + Σ_S c_S ψ(N), where n_S counts samples, itself included, that are nearer
    in S than the k-th neighbour in all variables.

    A consistent estimate, no bound; biased towards 0 in many dimensions. Within a block, `metric`
    measures the distance; between blocks it is the largest that counts. Euclidean distances lose
    less to dimension and are what "auto" takes where several dimensions have no ties.

    Args:
        blocks: variables, scaled alike.
        measure: coefficients of entropies, the joint one of all variables among them.
        neighbors: k.
        metric: within a block.
        device: where distances are computed when there are too many dimensions for trees.
    """
    found = _knn(blocks, measure, neighbors, metric, device)
    n = len(found.pointwise)
    if sum(b.shape[1] for b in blocks) <= _TREE_DIMENSIONS or n < 20 * _PARTS * neighbors:
        return found
    # In many dimensions a few samples are neighbours of most, so that contributions hang together
    # and their spread says too little (half of it in 20 + 20 dimensions). The variance is B / N,
    # B from parts (Holmes & Nemenman 2019).
    parts = [
        _knn([b[i::_PARTS] for b in blocks], measure, neighbors, metric, device).value
        for i in range(_PARTS)
    ]
    more = np.var(parts, ddof=1) / _PARTS - found.stderr**2
    return found._replace(floor=float(np.sqrt(max(more, 0.0))))


def _knn(
    blocks: list[np.ndarray],
    measure: Measure,
    neighbors: int,
    metric: Metric,
    device: torch.device | str,
) -> Estimate:
    """`knn`, whose contributions are taken for independent."""
    n, joint = len(blocks[0]), tuple(range(len(blocks)))
    if not 1 <= neighbors < n:
        raise ValueError(f"knn: expected 1 <= neighbors < {n} samples, got {neighbors}")
    if joint not in measure:
        raise ValueError(f"knn: the measure must contain the entropy of all variables {joint}")
    subsets = [s for s in measure if s != joint]
    width = sum(b.shape[1] for b in blocks)
    if metric == "auto":
        tied = any(len(np.unique(b, axis=0)) < 0.95 * n for b in blocks)
        metric = "chebyshev" if tied or width == len(blocks) else "euclidean"
    if metric == "chebyshev" and width <= _TREE_DIMENSIONS:
        radius, used, counts = _by_tree(blocks, subsets, neighbors)
    else:
        radius, used, counts = _by_matrix(blocks, subsets, neighbors, metric, torch.device(device))
    size = np.where(radius > 0, digamma(n), np.log(n))
    pointwise = -measure[joint] * digamma(used) + sum(measure.values()) * size
    for subset, count in zip(subsets, counts, strict=True):
        pointwise -= measure[subset] * digamma(count)
    return Estimate(float(pointwise.mean()), pointwise)


def ksg2(x: np.ndarray, y: np.ndarray, neighbors: int = 3) -> Estimate:
    """KSG-2 (Kraskov et al. 2004, eq. 9): rectangles, not squares; less bias, more variance.

    Args:
        x: [N, d], scaled like y.
        y: [N, e].
        neighbors: k.
    """
    n = len(x)
    points = np.concatenate([x, y], 1)
    index = np.asarray(KDTree(points).query(points, neighbors + 1, p=np.inf)[1])
    pointwise = np.full(n, digamma(neighbors) - 1 / neighbors + digamma(n))
    for block in (x, y):
        radius = np.abs(block[index[:, 1:]] - block[:, None]).max((1, 2))
        pointwise -= digamma(_count_within(block, radius, closed=True) - 1)
    return Estimate(float(pointwise.mean()), pointwise)


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
    points = x.detach().cpu().double().numpy()
    points = (points - points.mean(0)) / np.maximum(points.std(0), 1e-12)
    return ross(points, label.detach().cpu().numpy(), neighbors).value


def ross(points: np.ndarray, labels: np.ndarray, neighbors: int = 3) -> Estimate:
    """`discrete_continuous` of arrays [N, d], [N] with every sample's contribution."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = counts[inverse] > 1
    points, inverse = points[kept], inverse[kept]
    if not len(points):
        raise ValueError("ross: every label occurs only once")
    radius, used = np.zeros(len(points)), np.zeros(len(points))
    for value in np.unique(inverse):
        rows = np.flatnonzero(inverse == value)
        k = min(neighbors, len(rows) - 1)
        tree = KDTree(points[rows])
        distance, _ = tree.query(points[rows], [k + 1], p=np.inf)  # type: ignore[arg-type]
        radius[rows], used[rows] = distance[:, 0], k
        atoms = rows[distance[:, 0] == 0]
        used[atoms] = tree.query_ball_point(points[atoms], 0, p=np.inf, return_length=True)
    within = _count_within(points, radius)
    pointwise = digamma(len(points)) + digamma(used) - digamma(counts[inverse]) - digamma(within)
    return Estimate(float(pointwise.mean()), pointwise)


def _by_tree(
    blocks: list[np.ndarray], subsets: list[tuple[int, ...]], k: int
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Radius to the k-th neighbour, neighbours used, and each subset's counts, [N] each."""
    points = np.concatenate(blocks, 1)
    tree = KDTree(points)
    radius = np.asarray(tree.query(points, [k + 1], p=np.inf)[0])[:, 0]  # type: ignore[arg-type]
    used, atoms = np.full(len(points), float(k)), radius == 0
    if atoms.any():
        used[atoms] = tree.query_ball_point(points[atoms], 0, p=np.inf, return_length=True)
    counts = [_count_within(np.concatenate([blocks[b] for b in s], 1), radius) for s in subsets]
    return radius, used, counts


def _count_within(points: np.ndarray, radius: np.ndarray, closed: bool = False) -> np.ndarray:
    """Samples strictly nearer than radius [N] (within it if closed, or if it is 0), with itself."""
    if points.shape[1] == 1:
        return _count_sorted(points[:, 0], radius, closed)
    reach = radius if closed else np.nextafter(radius, 0)
    return KDTree(points).query_ball_point(points, reach, p=np.inf, return_length=True)


def _count_sorted(x: np.ndarray, radius: np.ndarray, closed: bool) -> np.ndarray:
    """The same in one dimension, from the sorted order.

    x ± radius is rounded, so that its place in the order can be off by the sample that defines the
    radius; that one is compared again by its distance, as a tree would.
    """
    order = np.sort(x)
    n = len(x)
    closed = closed | (radius == 0)

    def inside(index: np.ndarray) -> np.ndarray:
        distance = np.abs(order[np.clip(index, 0, n - 1)] - x)
        near = np.where(closed, distance <= radius, distance < radius)
        return near & (index >= 0) & (index < n)

    high = np.searchsorted(order, x + radius, "right")
    high = np.where(inside(high), high + 1, high)
    high = np.where(inside(high - 1), high, high - 1)
    low = np.searchsorted(order, x - radius, "left")
    low = np.where(inside(low - 1), low - 1, low)
    low = np.where(inside(low), low, low + 1)
    return high - low


def _by_matrix(
    blocks: list[np.ndarray],
    subsets: list[tuple[int, ...]],
    k: int,
    metric: Metric,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The same from all distances, some rows at a time."""
    width = sum(b.shape[1] for b in blocks)
    centred = [b - b.mean(0) for b in blocks]
    # In few dimensions, and beside outliers, neighbours are so near that a difference of squares
    # needs all digits.
    tame = width > 3 and max(np.abs(b).max() for b in centred) < 10
    dtype = torch.float32 if tame else torch.float64
    away = [_distances(torch.from_numpy(b).to(device, dtype), metric) for b in centred]
    n = len(blocks[0])
    rows = max(1, min(n, _CHUNK // n))
    radii, used, counts = [], [], [[] for _ in subsets]
    for start in range(0, n, rows):
        distances = [part(slice(start, start + rows)) for part in away]
        joint = functools.reduce(torch.maximum, distances)
        itself = torch.arange(len(joint), device=device)
        joint[itself, itself + start] = -1.0  # nearest by construction, not by rounding
        radius = _kth_smallest(joint, k + 1)
        atom = radius == 0
        radii.append(radius[:, 0])
        used.append(torch.where(atom[:, 0], (joint <= 0).sum(1), k))
        limit = torch.where(atom, torch.finfo(dtype).tiny, radius)
        for distance in distances:
            distance[itself, itself + start] = -1.0
        for subset, count in zip(subsets, counts, strict=True):
            # Sums of floats 0 and 1, exact below 2^24, are several times faster than of booleans.
            inside = torch.lt(distances[subset[0]], limit, out=joint)
            for b in subset[1:]:
                inside = inside.mul_(distances[b] < limit)
            count.append(inside.sum(1))
    return (
        torch.cat(radii).double().cpu().numpy(),
        torch.cat(used).cpu().numpy(),
        [torch.cat(c).cpu().numpy() for c in counts],
    )


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """K-th smallest of each row [R, N] -> [R, 1].

    It is among the k columns of a folded row with the smallest minima: one pass and a small sort.
    """
    folds = 25
    columns = values.shape[1] // folds
    if columns <= 4 * k:
        return values.topk(k, largest=False).values[:, -1:]
    folded = values[:, : folds * columns].unflatten(1, (folds, columns))
    nearest = folded.amin(1).topk(k, largest=False, sorted=False).indices
    near = folded.gather(2, nearest[:, None].expand(-1, folds, -1)).flatten(1)
    near = torch.cat([near, values[:, folds * columns :]], 1)
    return near.topk(k, largest=False).values[:, -1:]


def _distances(points: Tensor, metric: Metric) -> Callable[[slice], Tensor]:
    """From rows of points [N, d] to all of them, [rows, N], on demand.

    Squares of Euclidean distances, whose order is the same: x² - 2xy + y² as one product.
    """
    if metric == "euclidean" and points.shape[1] > 1:
        square, one = points.square().sum(1, keepdim=True), torch.ones_like(points[:, :1])
        left, right = torch.cat([-2 * points, one, square], 1), torch.cat([points, square, one], 1)
        return lambda rows: left[rows] @ right.T

    def largest(rows: slice) -> Tensor:
        distance = (points[rows, :1] - points[:, 0]).abs_()
        for d in range(1, points.shape[1]):
            torch.maximum(distance, (points[rows, d : d + 1] - points[:, d]).abs_(), out=distance)
        return distance.square_() if metric == "euclidean" else distance

    return largest

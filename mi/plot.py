"""Pictures of estimates; needs matplotlib. Each function returns a figure: `.savefig("a.png")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mi.estimate import Array, estimate_mi
from mi.result import MIResult


def sample_size(
    x: Array,
    y: Array,
    estimators: Sequence[str] = ("auto",),
    sizes: Sequence[int] | None = None,
    truth: float | None = None,
    estimate: Callable[..., MIResult] = estimate_mi,
    **options: Any,
) -> Figure:
    """Estimates and their intervals over the number of samples: has it settled?

    Args:
        x: [N] or [N, d], in random order; the first n are used.
        y: likewise.
        estimators: names of `list_estimators()`, or "auto".
        sizes: numbers of samples; None takes 6 from 100 to N, evenly on a logarithmic axis.
        truth: [nats], where it is known.
        estimate: which measure, called as `estimate(x, y, estimator=…)`.
        options: of `estimate`.
    """
    n = len(x)
    sizes = np.geomspace(min(100, n), n, 6).astype(int).tolist() if sizes is None else list(sizes)
    if not sizes or max(sizes) > n:
        raise ValueError(f"sizes: expected numbers up to {n}, the samples there are, got {sizes}")
    figure, axes = _axes("samples", "information [nats]")
    for shift, name in enumerate(estimators):
        found = [estimate(x[:k], y[:k], estimator=name, **options) for k in sizes]
        value = np.array([f.value for f in found])
        reach = np.abs(np.array([f.interval for f in found]).T - value)
        # Side by side, so that intervals of different estimators do not hide each other.
        place = np.array(sizes) * 1.03 ** (shift - (len(estimators) - 1) / 2)
        axes.errorbar(place, value, reach, marker="o", markersize=3, capsize=2, label=name)
    if truth is not None:
        axes.axhline(truth, color="0.3", linestyle="--", linewidth=1, label="truth")
    axes.set_xscale("log")
    axes.legend(frameon=False)
    return figure


def staircase(
    truth: Sequence[float] | np.ndarray,
    curves: Mapping[str, Sequence[float] | np.ndarray],
    smoothing: int = 200,
) -> Figure:
    """Values of bounds during training while the information rises in steps: bias and variance.

    Args:
        truth: at each step of training [T].
        curves: value at each step [T] of each bound.
        smoothing: steps of the centred moving average that is drawn over the values.
    """
    if not curves:
        raise ValueError("staircase: expected at least one curve")
    truth, columns = np.asarray(truth, float), min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = Figure((3.0 * columns + 0.6, 2.3 * rows + 0.5), layout="constrained", dpi=130)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (name, values) in zip(grid, curves.items(), strict=False):
        values = np.asarray(values, float)
        if values.shape != truth.shape:
            raise ValueError(f"{name}: expected {len(truth)} values, got {list(values.shape)}")
        window = max(1, min(smoothing, len(values)))
        mean = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(values, color="C0", alpha=0.25, linewidth=0.5, rasterized=True)
        axes.plot(np.arange(len(mean)) + (window - 1) / 2, mean, color="C0", linewidth=1.3)
        axes.plot(truth, color="k", linewidth=1, linestyle="--")
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    top = 1.25 * truth.max()
    for place, axes in enumerate(grid):
        axes.set_visible(place < len(curves))
        axes.set_ylim(min(0.0, 1.25 * truth.min()), top)
        if place % columns == 0:
            axes.set_ylabel("nats")
        if place >= len(curves) - columns:
            axes.set_xlabel("step of training")
            axes.tick_params(labelbottom=True)
    return figure


def pairwise(
    variables: Mapping[str, Array],
    estimate: Callable[..., MIResult] = estimate_mi,
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """Information between all pairs of variables, as a picture and as a matrix [V, V] in nats.

    The diagonal is left out (NaN): a real variable tells infinitely much about itself.

    Args:
        variables: name -> [N] or [N, d].
        estimate: of a pair.
        options: of `estimate`, e.g. `quick=True`.
    """
    names = list(variables)
    if len(names) < 2:
        raise ValueError(f"pairwise: expected at least 2 variables, got {names}")
    matrix = np.full((len(names), len(names)), np.nan)
    for i, a in enumerate(names):
        for j in range(i):
            value = estimate(variables[a], variables[names[j]], **options).value
            matrix[i, j] = matrix[j, i] = value
    side = 1.5 + 0.62 * len(names)
    figure, axes = _axes("", "", (side + 0.8, side))
    top = max(float(np.nanmax(matrix)), 1e-6)
    image = axes.imshow(matrix, vmin=0, vmax=top, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    for i, j in np.argwhere(~np.isnan(matrix)):
        colour = "k" if matrix[i, j] > 0.6 * top else "w"
        text = f"{round(float(matrix[i, j]), 2) + 0.0:.2f}"  # without a negative zero
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="information [nats]", shrink=0.8)
    return figure, matrix


def _axes(x: str, y: str, size: tuple[float, float] = (5.6, 3.8)):
    figure = Figure(size, layout="constrained", dpi=130)
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes

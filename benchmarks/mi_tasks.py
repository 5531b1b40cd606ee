"""Distributions with known information: the 40 tasks of "Beyond Normal", and others.

Czyz et al., "Beyond Normal: On the Evaluation of Mutual Information Estimators" (NeurIPS 2023),
written anew from its definitions. Those of `EXTRA` are ours: no copula of theirs is elliptical.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special, stats

Sampler = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Map = Callable[[np.ndarray], np.ndarray]


class Task(NamedTuple):
    """A pair of variables."""

    name: str
    truth: float
    """I(X; Y) [nats]."""
    sample: Sampler
    """(N, generator) -> x [N, d], y [N, e]."""
    elliptical: bool
    """Whether the copula is Gaussian's or Student's."""

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples; each seed of each task has a stream of its own."""
        return self.sample(n, np.random.default_rng([seed, *self.name.encode()]))


def through(name: str, task: Task, f: Map, g: Map, elliptical: bool) -> Task:
    """Invertible maps of x and of y, which leave the information as it was."""

    def sample(n, rng):
        x, y = task.sample(n, rng)
        return f(x), g(y)

    return Task(name, task.truth, sample, elliptical)


# Gaussians and Student's t.


def dense(d: int, e: int, rho: float) -> np.ndarray:
    """The same correlation everywhere."""
    return np.full((d + e, d + e), rho) + (1 - rho) * np.eye(d + e)


def pairs(d: int, rho: float, number: int) -> np.ndarray:
    """x_i and y_i of the first `number` coordinates correlate, and nothing else does."""
    r, i = np.eye(2 * d), np.arange(number)
    r[i, d + i] = r[d + i, i] = rho
    return r


def gaussian_truth(r: np.ndarray, d: int) -> float:
    parts = [np.linalg.slogdet(m)[1] for m in (r[:d, :d], r[d:, d:], r)]
    return 0.5 * float(parts[0] + parts[1] - parts[2])


def gaussian(name: str, r: np.ndarray, d: int) -> Task:
    root = np.linalg.cholesky(r)

    def sample(n, rng):
        z = rng.standard_normal((n, len(r))) @ root.T
        return z[:, :d], z[:, d:]

    return Task(name, gaussian_truth(r, d), sample, True)


def student_entropy(d: int, dof: float) -> float:
    """Of d dimensions with unit scatter (Arellano-Valle et al. 2013, eq. 7)."""
    half, more = dof / 2, (dof + d) / 2
    shift = special.gammaln(half) - special.gammaln(more) + 0.5 * d * math.log(dof * math.pi)
    return float(shift + more * (special.digamma(more) - special.digamma(half)))


def student(d: int, dof: int) -> Task:
    """Uncorrelated x [d] and y [d] that share their scale."""

    def sample(n, rng):
        z = rng.standard_normal((n, 2 * d)) / np.sqrt(rng.chisquare(dof, (n, 1)) / dof)
        return z[:, :d], z[:, d:]

    truth = 2 * student_entropy(d, dof) - student_entropy(2 * d, dof)
    return Task(f"student-{d}-{d}-{dof}", truth, sample, True)


def additive_uniform(epsilon: float) -> Task:
    """Uniform x plus uniform noise."""

    def sample(n, rng):
        x = rng.random((n, 1))
        return x, x + rng.uniform(-epsilon, epsilon, (n, 1))

    truth = epsilon - math.log(2 * epsilon) if epsilon <= 0.5 else 1 / (4 * epsilon)
    return Task(f"1v1-additive-{epsilon}", truth, sample, False)


# Maps.


def half_cube(x: np.ndarray) -> np.ndarray:
    return x * np.sqrt(np.abs(x))


def wiggly_x(x: np.ndarray) -> np.ndarray:
    return x + 0.4 * np.sin(x) + 0.2 * np.sin(1.7 * x + 1) + 0.03 * np.sin(3.3 * x - 2.5)


def wiggly_y(x: np.ndarray) -> np.ndarray:
    return x - 0.4 * np.sin(0.4 * x) + 0.17 * np.sin(1.3 * x + 3.5) + 0.02 * np.sin(4.3 * x - 2.5)


def swiss_roll(u: np.ndarray) -> np.ndarray:
    t = 1.5 * math.pi * (1 + 2 * u)
    return np.concatenate([t * np.cos(t), t * np.sin(t)], 1) / 21


def to_mixture(weight: float, first: float, second: float) -> Map:
    """Normal x to w N(first, 1) + (1-w) N(second, 1), by their distribution functions."""
    grid = np.linspace(-10, 10, 200_001)
    levels = weight * special.ndtr(grid - first) + (1 - weight) * special.ndtr(grid - second)
    return lambda x: np.interp(special.ndtr(x), levels, grid)


def spiral(i: int, j: int, speed: Callable[[np.ndarray], np.ndarray]) -> Map:
    """Rotate coordinates i and j by an angle that the point's squared norm decides."""

    def rotate(x: np.ndarray) -> np.ndarray:
        angle = speed(np.square(x).sum(1))
        c, s, out = np.cos(angle), np.sin(angle), x.copy()
        out[:, i], out[:, j] = c * x[:, i] - s * x[:, j], s * x[:, i] + c * x[:, j]
        return out

    return rotate


def beyond_normal() -> list[Task]:
    """The 40 tasks, in the paper's order."""
    base = gaussian("1v1-normal", dense(1, 1, 0.75), 1)
    cauchy = student(1, 1)
    cdf = through("1v1-normal-cdf", base, special.ndtr, special.ndtr, True)
    tasks = [
        base,
        cdf,
        additive_uniform(0.1),
        additive_uniform(0.75),
        through("1v1-bimodal", base, to_mixture(0.3, 0, 5), to_mixture(0.5, -1, 3), True),
        through("1v1-wiggly", base, wiggly_x, wiggly_y, True),
        through("1v1-half-cube", base, half_cube, half_cube, True),
        cauchy,
        through("asinh-student-1-1-1", cauchy, np.arcsinh, np.arcsinh, True),
        through("swiss-roll", cdf, swiss_roll, lambda y: y, False),
    ]
    tasks += [gaussian(f"dense-{d}-{d}", dense(d, d, 0.5), d) for d in (2, 3, 5, 25, 50)]
    sparse = {d: gaussian(f"2-pair-{d}-{d}", pairs(d, 0.8, 2), d) for d in (2, 3, 5, 25)}
    tasks += sparse.values()
    tasks += [student(d, v) for d, v in ((2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3))]
    uniform = [
        through(f"normal-cdf-2-pair-{d}-{d}", sparse[d], special.ndtr, special.ndtr, True)
        for d in (3, 5, 25)
    ]
    tasks += uniform
    tasks += [
        through(f"half-cube-2-pair-{d}-{d}", sparse[d], half_cube, half_cube, True)
        for d in (3, 5, 25)
    ]
    for task, d in zip([sparse[3], sparse[5], sparse[25], *uniform], (3, 5, 25) * 2, strict=True):

        def turn(square: np.ndarray, d: int = d) -> np.ndarray:
            return square / d

        tasks.append(
            through(f"spiral-{task.name}", task, spiral(0, 1, turn), spiral(1, 2, turn), False)
        )
    tasks += [
        through(f"asinh-student-{d}-{d}-{v}", student(d, v), np.arcsinh, np.arcsinh, True)
        for d, v in ((2, 1), (3, 2), (5, 2))
    ]
    return tasks


# Tasks of our own; none of their copulas is elliptical.


def independent(name: str, truth: float, one: Sampler, d: int, rotate: int | None) -> Task:
    """d independent copies of a 1 + 1 task, both sides turned by random rotations."""
    mixers = [np.eye(d)] * 2
    if rotate is not None:
        rng = np.random.default_rng(rotate)
        mixers = [stats.ortho_group.rvs(d, random_state=rng) for _ in range(2)]

    def sample(n, rng):
        x, y = one(n * d, rng)
        return x.reshape(n, d) @ mixers[0], y.reshape(n, d) @ mixers[1]

    return Task(name, d * truth, sample, False)


def entropy_of_sum(values: np.ndarray, std: float, weights: np.ndarray) -> float:
    """h(V + N(0, std²)) [nats] of a V on a fine grid of values with these weights."""
    at = np.linspace(values.min() - 9 * std, values.max() + 9 * std, 4001)
    weights = weights / weights.sum()
    p = stats.norm.pdf(at[:, None], values, std) @ weights
    return -float(np.trapezoid(special.xlogy(p, p), at))


def with_noise(f: Map, std: float) -> tuple[Sampler, float]:
    """Y = f(x) + noise, x normal; and its information by quadrature."""

    def sample(n, rng):
        x = rng.standard_normal((n, 1))
        return x, f(x) + std * rng.standard_normal((n, 1))

    x = np.linspace(-7, 7, 4001)
    entropy = entropy_of_sum(f(x), std, stats.norm.pdf(x))
    return sample, entropy - 0.5 * math.log(2 * math.pi * math.e * std**2)


def circle(std: float) -> tuple[Sampler, float]:
    """A point of the unit circle; each coordinate is measured with noise."""

    def sample(n, rng):
        angle = rng.uniform(0, 2 * math.pi, (n, 1))
        noise = std * rng.standard_normal((2, n, 1))
        return np.cos(angle) + noise[0], np.sin(angle) + noise[1]

    angle = np.arange(800) * 2 * math.pi / 800
    grid = np.linspace(-1 - 8 * std, 1 + 8 * std, 1201)
    px, py = (stats.norm.pdf(grid[:, None], v, std) for v in (np.cos(angle), np.sin(angle)))
    joint, mx, my = px @ py.T / len(angle), px.mean(1), py.mean(1)
    step = (grid[1] - grid[0]) ** 2
    ratio = joint * np.log(np.maximum(joint, 1e-300) / np.maximum(np.outer(mx, my), 1e-300))
    return sample, float(ratio.sum() * step)


def heteroscedastic(slope: float) -> tuple[Sampler, float]:
    """Y is normal with a deviation of exp(slope x)."""

    def sample(n, rng):
        x = rng.standard_normal((n, 1))
        return x, np.exp(slope * x) * rng.standard_normal((n, 1))

    x, log_y = np.linspace(-8, 8, 2001), np.linspace(-14, 7, 6001)
    y = np.exp(log_y)
    weights = stats.norm.pdf(x) / stats.norm.pdf(x).sum()
    p = stats.norm.pdf(y[:, None], 0, np.exp(slope * x)) @ weights
    entropy = -2 * float(np.trapezoid(special.xlogy(p, p) * y, log_y))
    return sample, entropy - 0.5 * math.log(2 * math.pi * math.e)


def lognormal_sum(std: float) -> tuple[Sampler, float]:
    """x = e^A, y = e^A + e^B, A and B normal."""

    def sample(n, rng):
        a, b = std * rng.standard_normal((2, n, 1))
        return np.exp(a), np.exp(a) + np.exp(b)

    t = np.linspace(-9 * std, 9 * std, 3001)  # log of the sum, and A
    weights = stats.norm.pdf(t, 0, std) * (t[1] - t[0])
    rest = np.exp(t)[:, None] - np.exp(t)
    log_rest = np.log(np.maximum(rest, 1e-300))
    p = np.where(rest > 0, stats.norm.pdf(log_rest, 0, std) / np.maximum(rest, 1e-300), 0) @ weights
    entropy = -float(np.trapezoid(special.xlogy(p, p) * np.exp(t), t))
    return sample, entropy - 0.5 * math.log(2 * math.pi * math.e * std**2)  # E B = 0


def from_density(name: str, sample: Sampler, log_ratio: Callable[..., np.ndarray]) -> Task:
    """The truth as the mean of the exact log-ratio of 2 million samples."""
    rng = np.random.default_rng(12345)
    terms = [log_ratio(*sample(100_000, rng)).mean() for _ in range(20)]
    return Task(name, float(np.mean(terms)), sample, False)


def two_signs(d: int, rho: float) -> Task:
    """Correlated by +ρ or by -ρ, all coordinates alike: uncorrelated, and not independent."""

    def sample(n, rng):
        x, noise = rng.standard_normal((2, n, d))
        sign = rng.choice([-1.0, 1.0], (n, 1))
        return x, sign * rho * x + math.sqrt(1 - rho**2) * noise

    def log_ratio(x, y):
        square = 1 - rho**2
        inner, both = (x * y).sum(1), (x**2).sum(1) + (y**2).sum(1)
        shared = -0.5 * d * math.log(square) - 0.5 * rho**2 * both / square
        return shared + np.logaddexp(rho * inner / square, -rho * inner / square) - math.log(2)

    return from_density(f"two-signs-{d}-{d}", sample, log_ratio)


def clusters(d: int, centre: float, std: float) -> Task:
    """x of two clusters at ±centre in all coordinates; y = x + noise."""

    def sample(n, rng):
        x = rng.choice([-centre, centre], (n, 1)) + rng.standard_normal((n, d))
        return x, x + std * rng.standard_normal((n, d))

    def log_ratio(x, y):
        total = 1 + std**2
        parts = [-0.5 * np.square(y - c).sum(1) / total for c in (-centre, centre)]
        log_p = np.logaddexp(*parts) - math.log(2) - 0.5 * d * math.log(total)
        return -0.5 * np.square(y - x).sum(1) / std**2 - d * math.log(std) - log_p

    return from_density(f"clusters-{d}-{d}", sample, log_ratio)


@functools.cache
def extra() -> dict[str, Task]:
    """Ours: shapes, changing variances, mixtures, nonlinear channels; up to 10 + 10 dimensions."""
    ring, ring_truth = circle(0.2)
    spread, spread_truth = heteroscedastic(0.8)
    sums, sums_truth = lognormal_sum(1.0)
    square, square_truth = with_noise(np.square, 0.5)
    squash, squash_truth = with_noise(lambda x: np.tanh(2 * x), 1.0)
    uniform = additive_uniform(0.3)
    swirl = spiral(0, 3, lambda s: np.sqrt(s)), spiral(2, 1, lambda s: -np.sqrt(s))
    tasks = [
        Task("circle", ring_truth, ring, False),
        Task("heteroscedastic", spread_truth, spread, False),
        Task("lognormal-sum", sums_truth, sums, False),
        independent("heteroscedastic-3-3", spread_truth, spread, 3, 1),
        independent("squares-3-3", square_truth, square, 3, 2),
        independent("additive-3-3", uniform.truth, uniform.sample, 3, 3),
        independent("tanh-10-10", squash_truth, squash, 10, 4),
        two_signs(4, 0.7),
        clusters(5, 1.0, 1.5),
        through("swirl-4-4", gaussian("", pairs(4, 0.7, 3), 4), *swirl, False),
    ]
    return {task.name: task for task in tasks}


TASKS = {task.name: task for task in beyond_normal()}

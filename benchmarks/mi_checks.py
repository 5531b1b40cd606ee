"""What estimators must hold beside accuracy on pairs of real vectors.

Every function yields (case, seed, estimator, truth, measure), where `measure()` gives the value or
a result of `mi`; the benchmark skips the rows that it has.
"""

from __future__ import annotations

import functools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import special, stats

import mi
from benchmarks.common import ROOT
from benchmarks.mi_tasks import TASKS, gaussian, gaussian_truth, pairs
from mi.channels import binary_entropy
from mi.neural import LEARNT

Check = tuple[str, int, str, float, Callable[[], Any]]


def entropy(p: np.ndarray) -> float:
    return -float(special.xlogy(p, p).sum())


def discrete(seeds: int) -> Iterator[Check]:
    """Joint tables drawn flatly, few samples: corrections of the plug-in value."""
    for rows, columns, n in ((20, 20, 500), (6, 9, 200)):
        for seed in range(seeds):
            rng = np.random.default_rng([seed, rows])
            p = rng.dirichlet(np.ones(rows * columns))
            table = p.reshape(rows, columns)
            truth = entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(p)
            x, y = np.unravel_index(rng.choice(len(p), n, p=p), table.shape)
            for name in ("plugin", "miller_madow", "grassberger", "chao_shen", "nsb", "auto"):
                yield (
                    f"{rows}x{columns}, n={n}",
                    seed,
                    name,
                    truth,
                    lambda a=x, b=y, e=name: mi.estimate_mi(a, b, estimator=e),
                )
            counts = np.histogram2d(x, y, [np.arange(k + 1) for k in table.shape])[0]
            name = "posterior median, prior known"
            yield f"{rows}x{columns}, n={n}", seed, name, truth, lambda c=counts: posterior(c)


def posterior(counts: np.ndarray) -> float:
    """Median information given the counts and the tables' own prior: nothing errs less, on average.

    No estimator, but what is left for estimators, which do not know the prior.
    """
    draws = np.random.default_rng(0).dirichlet(1 + counts.ravel(), 1000)
    p = draws.reshape(-1, *counts.shape)
    terms = special.xlogy(p, p / p.sum(1, keepdims=True) / p.sum(2, keepdims=True))
    return float(np.median(terms.sum((1, 2))))


def labelled(n: int, rng: np.random.Generator):
    """Three labels with a normal each."""
    label = rng.integers(3, size=n)
    grid = np.linspace(-8, 12, 8001)
    p = np.stack([stats.norm.pdf(grid, 2 * c) for c in range(3)])
    truth = float(np.trapezoid(special.xlogy(p, p / p.mean(0)).mean(0), grid))
    return rng.standard_normal(n) + 2 * label, label, truth


def windows(n: int, rng: np.random.Generator, m: int = 5):
    """An integer and a uniform number of the window that starts there (Gao et al. 2017)."""
    x = rng.integers(m, size=n)
    return x, x + rng.uniform(0, 2, n), math.log(m) - (m - 1) / m * math.log(2)


def zero_inflated(n: int, rng: np.random.Generator, p: float = 0.15):
    """An exponential rate, and its Poisson count or, sometimes, 0 all the same."""
    x = rng.exponential(size=n)
    y = np.where(rng.random(n) < p, 0, rng.poisson(x))
    rate, count = np.linspace(1e-6, 40, 20_001), np.arange(120)
    q = (1 - p) * stats.poisson.pmf(count[:, None], rate) + p * (count[:, None] == 0)
    density = np.exp(-rate)
    uncertain = float(np.trapezoid(-special.xlogy(q, q).sum(0) * density, rate))
    return x, y, entropy(np.trapezoid(q * density, rate, axis=1)) - uncertain


def mixed(seeds: int) -> Iterator[Check]:
    """Labels and reals, ties and atoms."""
    for seed in range(seeds):
        for make in (labelled, windows, zero_inflated):
            x, y, truth = make(5000, np.random.default_rng(seed))
            for name, a, b in (("typed", x, y), ("as floats", x.astype(float), y.astype(float))):
                yield (
                    f"{make.__name__}, {name}",
                    seed,
                    "auto",
                    truth,
                    lambda a=a, b=b: mi.estimate_mi(a, b),
                )
        if seed < 3:
            x, y, truth = labelled(5000, np.random.default_rng(seed))
            for name in ("ross", "mixed", "classifier"):
                yield (
                    "labelled, typed",
                    seed,
                    name,
                    truth,
                    lambda a=x, b=y, e=name: mi.estimate_mi(a, b, estimator=e),
                )


def conditional(seeds: int) -> Iterator[Check]:
    """I(X; Y | Z): Gaussian, behind a nonlinear confounder, collider, exclusive or."""
    for seed in range(seeds):
        rng, n = np.random.default_rng(seed), 5000
        r = 0.35 + 0.65 * np.eye(7)
        v = rng.standard_normal((n, 7)) @ np.linalg.cholesky(r).T
        sets = {"xz": [0, 1, 4, 5, 6], "yz": [2, 3, 4, 5, 6], "z": [4, 5, 6]}
        det = {k: np.linalg.slogdet(r[np.ix_(i, i)])[1] for k, i in sets.items()}
        truth = 0.5 * (det["xz"] + det["yz"] - det["z"] - np.linalg.slogdet(r)[1])
        z = rng.standard_normal((n, 1))
        e, f = rng.standard_normal((2, n, 1))
        hidden = z**2 + e, np.sin(2 * z) + 0.7 * e + math.sqrt(1 - 0.49) * f
        bits = rng.integers(2, size=(2, n))
        cases = {
            "gaussian 2-2-3": ((v[:, :2], v[:, 2:4], v[:, 4:]), truth),
            "confounded": ((*hidden, z), -0.5 * math.log(1 - 0.49)),
            "collider": ((e, f, e + f + z), gaussian_collider()),
            "exclusive or": ((*bits, bits[0] ^ bits[1]), math.log(2)),
        }
        for name, (arrays, value) in cases.items():
            yield name, seed, "auto", value, lambda a=arrays: mi.estimate_mi(*a)
            if "or" not in name:
                yield name, seed, "ksg", value, lambda a=arrays: mi.estimate_mi(*a, estimator="ksg")
            if name == "confounded" and seed < 2:
                yield (
                    name,
                    seed,
                    "ccmi",
                    value,
                    lambda a=arrays: mi.estimate_mi(*a, estimator="ccmi"),
                )


def gaussian_collider() -> float:
    """I(E; F | E + F + Z) of independent standard normals: partial correlation -1/2."""
    return -0.5 * math.log(1 - 0.25)


def several(seeds: int) -> Iterator[Check]:
    """Total correlation, interaction and O-information, transfer entropy."""
    for seed in range(seeds):
        rng, n = np.random.default_rng(seed), 5000
        r = 0.5 + 0.5 * np.eye(4)
        v = list((rng.standard_normal((n, 4)) @ np.linalg.cholesky(r).T).T)
        total = -0.5 * float(np.linalg.slogdet(r)[1])
        for name in ("auto", "ksg"):
            yield (
                "total correlation",
                seed,
                name,
                total,
                lambda v=v, e=name: mi.total_correlation(v, estimator=e),
            )
        bits = rng.integers(2, size=(2, n))
        yield (
            "interaction, exclusive or",
            seed,
            "auto",
            math.log(2),
            lambda b=bits: mi.interaction_information(b[0], b[1], b[0] ^ b[1]),
        )
        three = v[:3]
        together = gaussian_truth(r[:3, :3][[0, 2, 1]][:, [0, 2, 1]], 2)
        single = -0.5 * math.log(1 - 0.25)
        # I(X;Y|Z) - I(X;Y) = I(X,Z;Y) - I(Z;Y) - I(X;Y)
        yield (
            "interaction, Gaussian",
            seed,
            "auto",
            together - 2 * single,
            lambda t=three: mi.interaction_information(*t),
        )
        yield (
            "O-information, exclusive or",
            seed,
            "auto",
            -math.log(2),
            lambda b=bits: mi.o_information([*b, b[0] ^ b[1]]),
        )
        for name in ("auto", "ksg"):
            yield (
                "O-information, Gaussian",
                seed,
                name,
                o_information(r),
                lambda v=v, e=name: mi.o_information(v, e),
            )
        noise, series = rng.standard_normal((2, n)), np.zeros((2, n))
        for t in range(1, n):
            series[0, t] = noise[0, t]
            series[1, t] = 0.5 * series[1, t - 1] + 0.5 * series[0, t - 1] + noise[1, t]
        yield (
            "transfer entropy",
            seed,
            "auto",
            0.5 * math.log(1.25),
            lambda s=series: mi.transfer_entropy(s[0], s[1]),
        )
        yield (
            "transfer entropy, back",
            seed,
            "auto",
            0.0,
            lambda s=series: mi.transfer_entropy(s[1], s[0]),
        )


def o_information(r: np.ndarray) -> float:
    """Of a Gaussian with correlations r, by Ω = (m - 2) H(X) + Σ H(x_i) - H(the others)."""
    m = len(r)
    rest = [np.linalg.slogdet(np.delete(np.delete(r, i, 0), i, 1))[1] for i in range(m)]
    return 0.5 * float((m - 2) * np.linalg.slogdet(r)[1] - sum(rest))


def dependency(seeds: int) -> Iterator[Check]:
    """Wasserstein dependency of a binary symmetric channel between -1 and 1: 1 - 2p."""
    for seed in range(min(seeds, 5)):
        for flip in (0.1, 0.3, 0.5):

            def measure(flip=flip, seed=seed) -> float:
                generator = torch.Generator().manual_seed(seed)
                x = torch.randint(2, (14_000, 1), generator=generator) * 2.0 - 1
                y = torch.where(torch.rand(x.shape, generator=generator) < flip, -x, x)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    objective = mi.WassersteinDependency(mi.critics.LipschitzCritic(1, 1, 32))
                objective.fit(x[:4000], y[:4000], steps=300, lr=3e-3, negatives=4, seed=seed)
                return objective.eval().estimate(x[4000:], y[4000:]).value

            yield f"binary symmetric channel, {flip}", seed, "wasserstein", 1 - 2 * flip, measure


def capacity(seeds: int) -> Iterator[Check]:
    """Eight channels with closed forms, and a grid of 125 actions and 25 places."""
    del seeds
    q, eye = 4, np.eye(4)
    spread = np.full((q, q), 0.1 / (q - 1)) * (1 - eye) + 0.9 * eye
    channels = {
        "binary symmetric": ([[0.9, 0.1], [0.1, 0.9]], math.log(2) - binary_entropy(0.1)),
        "erasure": ([[0.7, 0.3, 0], [0, 0.3, 0.7]], 0.7 * math.log(2)),
        "z": ([[1, 0], [0.5, 0.5]], math.log(1 + 0.5 * 0.5)),
        "noiseless": (eye, math.log(4)),
        "useless": ([[0.2, 0.8], [0.2, 0.8]], 0.0),
        "typewriter": (0.5 * eye + 0.5 * np.roll(eye, 1, 1), math.log(2)),
        "q-ary symmetric": (spread, math.log(q) - binary_entropy(0.1) - 0.1 * math.log(q - 1)),
        "deterministic": ([[1, 0], [1, 0], [0, 1]], math.log(2)),
    }
    for name, (matrix, truth) in channels.items():
        w = torch.as_tensor(np.array(matrix, dtype=float))
        yield name, 0, "capacity", truth, lambda w=w: mi.channel_capacity(w)
    moves = np.zeros((125, 25))
    for index in range(125):  # three moves of five kinds on a torus of 5 x 5
        steps = [index % 5, index // 5 % 5, index // 25]
        moves[index, sum((0, 1, 4, 5, 20)[s] for s in steps) % 25] = 1
    reached = math.log((moves.sum(0) > 0).sum())
    yield (
        "125 x 25 grid",
        0,
        "capacity",
        reached,
        lambda: mi.channel_capacity(torch.from_numpy(moves)),
    )


def bounds(seeds: int) -> Iterator[Check]:
    """Learnt bounds on held-out samples of a 2 + 2 Gaussian of 0.9 nats; short training."""
    task = gaussian("bounds", pairs(2, 0.77, 2), 2)
    for seed in range(seeds):
        x, y = (torch.from_numpy(v).float() for v in task.draw(3000, seed))
        for name, (kind, make) in LEARNT.items():
            if kind.kind == "estimate":
                continue

            def measure(make=make, x=x, y=y, seed=seed) -> Any:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    estimator = make(2, 2)
                estimator.fit(x[:2000], y[:2000], steps=150, batch_size=128, lr=3e-3, seed=seed)
                return estimator.estimate(x[2000:], y[2000:], 250)

            yield kind.kind, seed, name, task.truth, measure


def coverage(seeds: int) -> Iterator[Check]:
    """95 % intervals of the default call without network, 2,000 samples."""
    for name in ("1v1-normal", "dense-5-5", "student-3-3-3", "1v1-additive-0.75"):
        task = TASKS[name]
        for seed in range(seeds):
            yield (
                name,
                seed,
                "quick",
                task.truth,
                lambda t=task, s=seed: mi.estimate_mi(*t.draw(2000, s), quick=True),
            )


def consistency(seeds: int) -> Iterator[Check]:
    """Song & Ermon 2020: ratios that must be 1, 1 and 2 (symmetry, processing, additivity)."""
    for name in ("dense-3-3", "spiral-2-pair-3-3", "swiss-roll"):
        task = TASKS[name]
        for seed in range(seeds):
            x, y = task.draw(4000, seed)
            u, v = task.draw(4000, seed + 500)

            def value(a: np.ndarray, b: np.ndarray) -> float:
                return mi.estimate_mi(a, b, quick=True).value

            yield (
                f"{name}: I(y,x)/I(x,y)",
                seed,
                "quick",
                1.0,
                lambda x=x, y=y: value(y, x) / value(x, y),
            )
            noise = np.random.default_rng(seed).standard_normal(y.shape)
            more = np.concatenate([y, y + 0.5 * noise], 1)
            yield (
                f"{name}: I(x; y, noisy y)/I(x,y)",
                seed,
                "quick",
                1.0,
                lambda x=x, y=y, m=more: value(x, m) / value(x, y),
            )
            both = np.concatenate([x, u], 1), np.concatenate([y, v], 1)
            yield f"{name}: two copies/one", seed, "quick", 2.0, lambda x=x, y=y, b=both: (
                value(*b) / value(x, y)
            )  # fmt: skip


@functools.cache
def contrast_cost(anchors: int, keys: int, symmetric: bool) -> tuple[float, float]:
    """Fused InfoNCE of d = 128, forward and backward: CPU-seconds, and MB over the inputs."""
    code = f"""
import re, time, torch
from mi import functional
torch.set_num_threads(1)
functional.contrast(*torch.randn(2, 300, 128, requires_grad=True), chunk=64).backward()
x, y = (torch.randn(n, 128).mul_(128**-0.5).requires_grad_() for n in ({anchors}, {keys}))
def kilobytes(name):  # the peak of ru_maxrss would be the parent's, if that was larger
    return int(re.search(name + r":\\s*(\\d+)", open("/proc/self/status").read())[1])
before, start = kilobytes("VmRSS"), time.process_time()
functional.contrast(x, y, symmetric={symmetric}).backward()
seconds = time.process_time() - start
print(seconds, (kilobytes("VmHWM") - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def numerics(seeds: int) -> Iterator[Check]:
    """Fused InfoNCE against the dense one, and with 65,536 negatives; ACORM's masked form."""
    del seeds
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2048, 128, generator=generator) / 128**0.25

    def gap(symmetric: bool) -> float:
        found = []
        for fused in (False, True):
            a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
            if fused:
                value = mi.functional.contrast(a, b, symmetric=symmetric, chunk=256)
            else:
                value = mi.functional.infonce(a @ b.T, symmetric=symmetric)
            value.backward()
            found.append((value.detach(), a.grad, b.grad))
        return max(float((p - q).abs().max()) for p, q in zip(*found, strict=True))

    yield "fused - dense, one way", 0, "infonce", 0.0, lambda: gap(False)
    yield "fused - dense, symmetric", 0, "infonce", 0.0, lambda: gap(True)
    sizes = (
        (8192, 8192, False),
        (8192, 8192, True),
        (1024, 65_536, False),
        (65_536, 65_536, False),
    )
    for size in sizes:
        for index, unit in enumerate(("CPU-s", "MB over the inputs")):
            case = f"{size[0]} x {size[1]}{', symmetric' if size[2] else ''}, d = 128: {unit}"
            yield case, 0, "infonce", 0.0, lambda s=size, i=index: contrast_cost(*s)[i]
    scores = torch.randn(32, 60, 8, 8, generator=generator)
    same = torch.rand(32, 60, 8, 8, generator=generator) < 0.3
    same |= torch.eye(8, dtype=torch.bool)

    def seconds() -> float:
        times = []
        for _ in range(6):
            s, start = scores.clone().requires_grad_(), time.process_time()
            mi.functional.infonce(s, positives=same, aggregate="sum_in").backward()
            times.append(time.process_time() - start)
        return min(times)

    yield "clustered positives (32, 60, 8), CPU-s", 0, "infonce", 0.0, seconds


CHECKS = (
    discrete, mixed, conditional, several, dependency, capacity, bounds, coverage, consistency,
    numerics,
)  # fmt: skip

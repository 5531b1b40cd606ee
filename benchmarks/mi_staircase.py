"""The staircase of Song & Ermon (2020): 20-d Gaussian pairs, more informative at every level.

Levels of 2, 4, 6, 8 and 10 nats, batches of 64, and the same with cubed y, which leaves the
information as it was. The second half of each level is judged: bias, deviation, error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mi.critics import (
    ConcatCritic,
    CopulaCritic,
    Critic,
    GaussianDecoder,
    MixtureDecoder,
    ResidualCritic,
    SeparableCritic,
)
from mi.neural import (
    CLUB,
    FDIME,
    FLO,
    JSD,
    MINE,
    NWJ,
    SMILE,
    TUBA,
    DoE,
    DonskerVaradhan,
    InfoNCE,
    InterpolatedBound,
    L1Out,
    MIEstimator,
)

LEVELS, SIZE, BATCH = (2.0, 4.0, 6.0, 8.0, 10.0), 20, 64
_MEMORY, _REFIT = 16_384, 500
"""Samples by which a copula is fitted, and steps between fits."""


def separable() -> Critic:
    return SeparableCritic(SIZE, SIZE, hidden=256)


BOUNDS: dict[str, Callable[[], MIEstimator]] = {
    "infonce": lambda: InfoNCE(separable()),
    "nwj": lambda: NWJ(separable()),
    "dv": lambda: DonskerVaradhan(separable()),
    "mine": lambda: MINE(separable()),
    "tuba": lambda: TUBA(separable()),
    "ialpha": lambda: InterpolatedBound(separable()),
    "smile": lambda: SMILE(separable()),
    "jsd": lambda: JSD(separable()),
    "fdime": lambda: FDIME(separable()),
    "flo": lambda: FLO(separable(), ConcatCritic(SIZE, SIZE, hidden=256)),
    "doe": lambda: DoE(GaussianDecoder(SIZE, SIZE, 256), GaussianDecoder(1, SIZE, 32)),
    "doe, mixture": lambda: DoE(MixtureDecoder(SIZE, SIZE, 4, 256), MixtureDecoder(1, SIZE, 4, 32)),
    "club": lambda: CLUB(GaussianDecoder(SIZE, SIZE, 256)),
    "l1out": lambda: L1Out(GaussianDecoder(SIZE, SIZE, 256)),
    # The copula is set when the first samples are there.
    "jsd on a copula": lambda: JSD(ResidualCritic(separable(), separable())),
}


def draw(nats: float, n: int, cubic: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rho = math.sqrt(1 - math.exp(-2 * nats / SIZE))
    x, noise = torch.randn(2, n, SIZE, generator=generator)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    return x, y**3 if cubic else y


def climb(name: str, cubic: bool, seed: int, steps: int) -> list[dict[str, Any]]:
    """Train one bound up the stairs; a row per level.

    Args:
        name: of `BOUNDS`.
        cubic: whether y is cubed.
        seed: of networks and samples.
        steps: per level.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        estimator = BOUNDS[name]()
    on_copula = name.endswith("copula")
    trained = estimator.critic.network if on_copula else estimator
    optimizer = torch.optim.Adam(trained.parameters(), 5e-4, fused=True)
    if on_copula:  # c of the residual, which would start at 0
        optimizer.add_param_group({"params": [estimator.critic.gain]})
    memory: list[Tensor] = []
    rows, start = [], time.process_time()
    for nats in LEVELS:
        values: list[Tensor] = []
        memory.clear()
        for step in range(steps):
            x, y = draw(nats, BATCH, cubic, generator)
            if on_copula:
                memory = [*memory[-_MEMORY // BATCH :], torch.stack([x, y])]
                if step % _REFIT == 0 or step in (10, 50):
                    estimator.critic.base = CopulaCritic(*torch.cat(memory, 1))
            if step >= steps // 2:
                with torch.no_grad():
                    values.append(estimator.bound(x, y, allow=True))
            optimizer.zero_grad()
            estimator.loss(x, y).backward()
            optimizer.step()
        found = torch.stack(values).double()
        bias, std = found.mean().item() - nats, found.std().item()
        rows.append({"bound": name, "cubic": int(cubic), "seed": seed, "nats": nats,
                     "steps": steps, "mean": bias + nats, "bias": bias, "std": std,
                     "mse": bias**2 + std**2, "cpu_s": time.process_time() - start})  # fmt: skip
        start = time.process_time()
    return rows

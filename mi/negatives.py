"""Where negatives come from: rows of a batch [N, K], or perturbed samples [N, K, e].

For `negatives=y[rows]` of an estimator, or `functional` bounds in their form (pos, neg). Negatives
from p(y) make a bound on I(X; Y), negatives from p(y | c) one on I(X; Y | C).
"""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled(n: int, count: int, device: torch.device | str = "cpu", generator=None) -> Tensor:
    """`count` other rows for each, never itself, uniformly, int64 [N, count]."""
    if n < 2:
        raise ValueError(f"shuffled: expected at least 2 samples, got {n}")
    shift = torch.randint(1, n, (n, count), device=device, generator=generator)
    return (torch.arange(n, device=device)[:, None] + shift) % n


def same_condition(condition: Tensor, count: int, generator=None) -> tuple[Tensor, Tensor]:
    """`count` other rows of the same condition for each, uniformly.

    Args:
        condition: int64 [N].
        count: K.
        generator: of random numbers.

    Returns:
        Rows int64 [N, K], and bool [N, K] where there is no other row of that condition: pass it as
        `exclude`.
    """
    order = condition.argsort(stable=True)
    place = torch.empty_like(order).scatter_(
        0, order, torch.arange(len(order), device=order.device)
    )
    first = torch.searchsorted(condition[order].contiguous(), condition)
    size = torch.searchsorted(condition[order].contiguous(), condition, right=True) - first
    draw = torch.rand(len(condition), count, device=condition.device, generator=generator)
    shift = 1 + (draw * (size - 1)[:, None]).long().clamp_max((size - 2).clamp_min(0)[:, None])
    rows = first[:, None] + (place - first + shift.T).T % size[:, None]
    return order[rows], (size < 2)[:, None].expand(-1, count)


def nearest_condition(condition: Tensor, count: int, chunk: int = 1024) -> Tensor:
    """The `count` other rows whose conditions are nearest, int64 [N, count]: nearly p(y | c).

    Args:
        condition: [N, d], scaled alike.
        count: K; few are less biased, many vary less.
        chunk: rows of distances at a time.
    """
    if not 1 <= count < len(condition):
        raise ValueError(f"nearest_condition: expected 1 <= count < {len(condition)}, got {count}")
    found = []
    for start in range(0, len(condition), chunk):
        distance = torch.cdist(condition[start : start + chunk], condition)
        own = torch.arange(len(distance), device=distance.device)
        distance[own, own + start] = torch.inf
        found.append(distance.topk(count, largest=False).indices)
    return torch.cat(found)


def perturbed(y: Tensor, count: int, std: Tensor | float, generator=None) -> Tensor:
    """Y plus Gaussian noise, [N, count, e]; CORRO's reward randomisation.

    Args:
        y: [N, e].
        count: K.
        std: of the noise in the unit of y: one, or of each column [e] (0 leaves it alone).
        generator: of random numbers.
    """
    shape = (len(y), count, y.shape[-1])
    noise = torch.randn(shape, device=y.device, dtype=y.dtype, generator=generator)
    return y[:, None] + noise * torch.as_tensor(std, device=y.device, dtype=y.dtype)

"""K-means on many small problems at once."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def kmeans(
    x: Tensor,
    clusters: int,
    generator: torch.Generator,
    mask: Tensor | None = None,
    iterations: int = 10,
) -> Tensor:
    """Clusters int64 [..., A] of the points x [..., A, D]: k-means++, then Lloyd's iterations.

    All problems in one call. Everything is computed from the distances of the points to each other,
    |x - mean(C)|² = mean_C |x - c|² - ½ mean_C mean_C |c - c'|², so that an iteration costs A A K
    and not A K D; A is small, D is not. (Arthur & Vassilvitskii 2007; Lloyd 1982.)

    There are at most as many clusters as points that count, so K need not be smaller than these.

    Args:
        x: points.
        clusters: K.
        generator: decides where the clusters start.
        mask: bool [..., A], points that count; the others get cluster 0 and have no influence.
        iterations: of Lloyd's algorithm.

    Raises:
        ValueError: K is below 1.
    """
    if clusters < 1:
        raise ValueError(f"clusters={clusters}: expected at least 1")
    lead, points = x.shape[:-2], x.shape[-2]
    x = x.reshape(-1, *x.shape[-2:]).float()
    counts = torch.ones(x.shape[:2], device=x.device)
    if mask is not None:
        counts = mask.reshape(-1, points).float()
    exact = "donot_use_mm_for_euclid_dist"  # equal points must be at distance 0
    distance = torch.cdist(x, x, compute_mode=exact).square()
    nearest, seeds = counts, []  # the first centre: any point that counts
    for k in range(clusters):
        # The largest of weight / exponential is drawn in proportion to the weights.
        noise = torch.empty_like(nearest).exponential_(generator=generator).clamp_min(1e-30)
        seed = (nearest / noise).argmax(-1)
        seeds.append(seed)
        reach = distance.gather(1, seed[:, None, None].expand(-1, 1, points))[:, 0] * counts
        nearest = reach if k == 0 else torch.minimum(nearest, reach)
    centres = torch.stack(seeds, -1)[:, None].expand(-1, points, -1)
    label = distance.gather(2, centres).argmin(-1)
    for _ in range(iterations):
        member = torch.nn.functional.one_hot(label, clusters).float() * counts[..., None]
        size = member.sum(1, keepdim=True)
        mean = distance @ member / size.clamp_min(1)  # of the distances to a cluster's points
        spread = (member * mean).sum(1, keepdim=True) / size.clamp_min(1)
        label = (mean - spread / 2).masked_fill(size == 0, torch.inf).argmin(-1)
    return (label * (counts > 0)).reshape(*lead, points)

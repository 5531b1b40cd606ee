"""What a representation kept: probes of known variables, and the likeness of two geometries.

Shape letters: E samples, D features, P variables, K neighbours.
"""

from __future__ import annotations

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from agents.core.nets import mlp


def standardised(x: Tensor, reference: Tensor | None = None) -> Tensor:
    """Columns of x [E, D] less the mean and over the deviation of `reference` (of x itself)."""
    reference = x if reference is None else reference
    return (x - reference.mean(0)) / reference.std(0).clamp_min(1e-6)


def explained(prediction: Tensor, target: Tensor) -> float:
    """R² of predictions [E, P]: mean over the variables that vary in the target."""
    total = (target - target.mean(0)).square().sum(0)
    kept = total > 1e-8 * len(target)
    share = 1 - (prediction - target).square().sum(0)[kept] / total[kept]
    return share.mean().item()


def linear_probe(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, ridge: float = 10.0
) -> float:
    """R² on test samples of the variables y [E, P], by ridge regression on features x [E, D].

    Args:
        x: training features; standardised inside.
        y: training variables.
        x_test: test features, of other episodes.
        y_test: test variables.
        ridge: penalty, in samples.
    """
    inputs, test = standardised(x).double(), standardised(x_test, x).double()
    target = y.double()
    gram = inputs.T @ inputs + ridge * torch.eye(inputs.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, inputs.T @ (target - target.mean(0)))
    return explained(test @ weight + target.mean(0), y_test.double())


def mlp_probe(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, steps: int = 1000, seed: int = 0
) -> float:
    """As `linear_probe`, by a network with two hidden layers."""
    inputs, target = standardised(x), standardised(y)
    network = fit(inputs, target, [128, 128], steps, seed)
    with torch.no_grad():
        prediction = network(standardised(x_test, x))
    return explained(prediction, standardised(y_test, y))


def fit(
    x: Tensor, y: Tensor, hidden: list[int], steps: int, seed: int = 0, lr: float = 1e-3
) -> nn.Sequential:
    """A network fitted to y [E, P] from x [E, D] by least squares, with weight decay."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = mlp(x.shape[1], hidden, y.shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=1e-2)
        for _ in range(steps):
            rows = torch.randint(len(x), (256,))
            loss = (network(x[rows]) - y[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def rsa(x: Tensor, y: Tensor) -> float:
    """Spearman's correlation of the pairwise distances of x [E, D] and y [E, P]."""
    return float(spearmanr(torch.pdist(x).numpy(), torch.pdist(y).numpy()).statistic)  # type: ignore[union-attr]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of x [E, D] and y [E, P] (Kornblith et al. 2019, eq. 3)."""
    x, y = (v.double() - v.double().mean(0) for v in (x, y))
    cross = (x.T @ y).square().sum()
    return (cross / ((x.T @ x).norm() * (y.T @ y).norm()).clamp_min(1e-12)).item()


def neighbour_overlap(x: Tensor, y: Tensor, neighbours: int = 10) -> float:
    """Share of each sample's K nearest neighbours in x [E, D] that are also those in y [E, P]."""
    near = []
    for v in (x, y):
        distance = torch.cdist(v, v).fill_diagonal_(torch.inf)
        index = distance.topk(neighbours, largest=False).indices
        near.append(torch.zeros_like(distance, dtype=torch.bool).scatter_(1, index, True))
    return (near[0] & near[1]).sum().item() / (len(x) * neighbours)


def edge_similarity(x: Tensor, y: Tensor) -> float:
    """Mean over pairs of exp(-|s d_x - d_y| / mean d_y), at most 1; s by least squares.

    Our form of InfoPower's behavioural similarity, whose kernel the paper leaves open.
    """
    a, b = torch.pdist(x), torch.pdist(y)
    scale = (a * b).sum() / a.square().sum().clamp_min(1e-12)
    return torch.exp(-(scale * a - b).abs() / b.mean()).mean().item()

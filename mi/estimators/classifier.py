"""Information about a skill by decoders that are fitted on some samples and judged on others."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from mi.objectives.skill import CategoricalDiscriminator, GaussianDiscriminator


class Decoded(NamedTuple):
    """What a decoder made of held-out samples."""

    nats: float
    """Barber-Agakov bound log p^-1(z) + E log q(z|x); can be a little below 0."""
    accuracy: float
    """Share of samples whose skill is the likeliest; NaN for continuous skills."""


def decode(
    x: Tensor,
    skill: Tensor,
    discrete: bool = True,
    folds: int = 2,
    steps: int = 400,
    batch: int = 512,
    seed: int = 0,
) -> Decoded:
    """Lower bound of I(Z; X) by fresh decoders, cross-fitted.

    Each fold is judged by a decoder fitted on the other folds; a fifth of those chooses when to
    stop, so the samples that judge decide nothing. In expectation the value is a lower bound of
    the information, whatever the decoder (Barber & Agakov 2003).

    Args:
        x: samples [E, D].
        skill: one-hot rows or unit vectors [E, Z]; the prior is uniform.
        discrete: whether skills are one-hot.
        folds: number of folds.
        steps: gradient steps of each decoder.
        batch: samples per step.
        seed: of the folds and the decoders; torch's global generator is left as it was.

    Raises:
        ValueError: too few samples to split.
    """
    nats, right = decoded_terms(x, skill, discrete, folds, steps, batch, seed)
    return Decoded(nats.mean().item(), right.mean().item() if discrete else float("nan"))


def decoded_terms(
    x: Tensor,
    skill: Tensor,
    discrete: bool = True,
    folds: int = 2,
    steps: int = 400,
    batch: int = 512,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The terms that `decode` averages: nats and whether the likeliest skill was right, [E] each.

    In the order of the folds, not of the samples.
    """
    if len(x) < 5 * folds or len(x) != len(skill):
        raise ValueError(
            f"decode: expected at least {5 * folds} samples of both, got {len(x)}, {len(skill)}"
        )
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        parts = torch.randperm(len(x), device=x.device).chunk(folds)
        judged = []
        for i, held_out in enumerate(parts):
            rest = torch.cat([part for j, part in enumerate(parts) if j != i])
            decoder, mean, std = _fit(x[rest], skill[rest], discrete, steps, batch)
            judged.append(_judge(decoder, (x[held_out] - mean) / std, skill[held_out]))
    nats, right = (torch.cat(values) for values in zip(*judged, strict=True))
    return nats, right


def _fit(x: Tensor, skill: Tensor, discrete: bool, steps: int, batch: int):
    """A decoder at its best validation loss, and the features' mean and deviation."""
    kind = CategoricalDiscriminator if discrete else GaussianDiscriminator
    decoder = kind(x.shape[1], skill.shape[1]).to(x.device)
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x, split = (x - mean) / std, len(x) // 5
    optimizer = torch.optim.AdamW(decoder.parameters(), 2e-3, weight_decay=1e-3)
    best, kept = torch.tensor(torch.inf), decoder.state_dict()
    for step in range(1, steps + 1):
        rows = torch.randint(split, len(x), (batch,), device=x.device)
        loss = decoder.loss(x[rows], x[rows], skill[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0 or step == steps:
            with torch.no_grad():
                loss = decoder.loss(x[:split], x[:split], skill[:split])
            if loss < best:
                best, kept = loss, copy.deepcopy(decoder.state_dict())
    decoder.load_state_dict(kept)
    return decoder, mean, std


@torch.no_grad()
def _judge(
    decoder: CategoricalDiscriminator | GaussianDiscriminator, x: Tensor, skill: Tensor
) -> tuple[Tensor, Tensor]:
    right = (decoder.decoder(x).argmax(-1) == skill.argmax(-1)).float()
    return decoder.pointwise(x, x, skill), right

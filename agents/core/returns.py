"""Returns and advantages over [T, N, ...] blocks of experience."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016), [T, N, K].

    Args:
        reward: [T, N, K], one column per critic.
        value: V(s_t), [T, N, K].
        next_value: V of the true successor of s_t, also where the episode was truncated.
        terminated: [T, N] float, 1 where the successor has no value.
        done: [T, N] float, 1 where the next row belongs to another episode.
        gamma: discount.
        lam: λ.
    """
    assert reward.shape == value.shape == next_value.shape, (reward.shape, value.shape)
    assert terminated.shape == done.shape == reward.shape[:2], (terminated.shape, reward.shape)
    delta = reward + gamma * (1 - terminated)[..., None] * next_value - value
    keep = gamma * lam * (1 - done)[..., None]
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        following = torch.addcmul(delta[t], keep[t], following)
        advantage[t] = following
    return advantage


def lambda_returns(reward: Tensor, value: Tensor, discount: Tensor, lam: float) -> Tensor:
    """λ-returns of t = 0 … H-1 (Dreamer, Hafner et al. 2020, eq. 6), [H, ...]; differentiable.

    R_t = r_{t+1} + γ_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1}), and R_H = v_H.

    Args:
        reward: r_1 … r_H, of arriving at each successor, [H, ...].
        value: v_1 … v_H, of the successors.
        discount: γ_1 … γ_H, 0 where the successor is terminal.
        lam: λ.
    """
    assert reward.shape == value.shape == discount.shape, (reward.shape, value.shape)
    following, returns = value[-1], []
    for t in reversed(range(len(reward))):
        following = reward[t] + discount[t] * torch.lerp(value[t], following, lam)
        returns.append(following)
    return torch.stack(returns[::-1])

"""Value decomposition for teams: recurrent utilities, mixers, targets.

Shape letters: T time, B episodes, A agents, H width, S state features, C condition features. Time
comes first, as in the recurrent networks' own layout: nothing is copied to turn it around.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.core.config import ConfigError
from agents.core.evaluate import Episodes


def unroll(
    gru: nn.GRU, x: Tensor, hidden: Tensor | None = None, starts: Tensor | None = None
) -> Tensor:
    """What a GRU remembers after every step, [T, R, H].

    Args:
        gru: the network.
        x: [T, R, D].
        hidden: what it remembered before the first, [R, H]; nothing if None.
        starts: bool [T, R], steps that begin an episode, before which it forgets; without them all
            steps are one call.
    """
    if starts is None:
        return gru(x, None if hidden is None else hidden[None])[0]
    memory = x.new_zeros(x.shape[1], gru.hidden_size) if hidden is None else hidden
    steps = []
    for t in range(len(x)):
        memory = memory * (~starts[t, :, None]).float()
        memory = gru(x[t : t + 1], memory[None])[0][0]
        steps.append(memory)
    return torch.stack(steps)


class Recurrent(nn.Module):
    """Linear, ReLU, GRU over time; every agent on its own, with shared weights.

    Args:
        inputs: features that go in.
        width: H.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.gru = nn.GRU(width, width)

    def forward(
        self, x: Tensor, hidden: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """What is remembered after every step, [T, B, A, H].

        Args:
            x: [T, B, A, D].
            hidden: what was remembered before the first, [B, A, H]; nothing if None.
            starts: bool [T, B], steps that begin an episode; the first of all if None.
        """
        rows = functional.relu(self.input(x)).flatten(1, 2)
        before = None if hidden is None else hidden.flatten(0, 1)
        starts = None if starts is None else starts.repeat_interleave(x.shape[2], 1)
        return unroll(self.gru, rows, before, starts).unflatten(1, x.shape[1:3])


class Utility(nn.Module):
    """Q_i of every action, from what agent i has seen (Hausknecht & Stone 2015).

    Args:
        inputs: features that an agent sees.
        width: H.
        actions: U.
    """

    def __init__(self, inputs: int, width: int, actions: int) -> None:
        super().__init__()
        self.body, self.head = Recurrent(inputs, width), nn.Linear(width, actions)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Q [T, B, A, U] and what is remembered after the last step [B, A, H]."""
        memory = self.body(x, hidden)
        return self.head(memory), memory[-1]


class Independent(nn.Module):
    """IQL (Tan 1993): no mixing, every agent has a target of its own."""

    def forward(self, q: Tensor, condition: Tensor) -> Tensor:
        """`q` itself, [T, B, A]."""
        return q


class Sum(nn.Module):
    """VDN (Sunehag et al. 2018): Q_tot = Σ Q_i."""

    def forward(self, q: Tensor, condition: Tensor) -> Tensor:
        """Q_tot [T, B, 1] of Q_i [T, B, A]."""
        return q.sum(-1, keepdim=True)


class QMix(nn.Module):
    """QMIX (Rashid et al. 2018): Q_tot rises with every Q_i, by weights that a condition sets.

    Args:
        agents: A.
        condition: C.
        embedding: width of the mixing network.
        hidden: width of the networks that set its weights.
    """

    def __init__(self, agents: int, condition: int, embedding: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.agents = agents

        def hyper(outputs: int, width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(condition, width), nn.ReLU(), nn.Linear(width, outputs)
            )  # fmt: skip

        self.weight_1, self.weight_2 = hyper(agents * embedding, hidden), hyper(embedding, hidden)
        self.bias_1, self.bias_2 = nn.Linear(condition, embedding), hyper(1, embedding)

    def forward(self, q: Tensor, condition: Tensor) -> Tensor:
        """Q_tot [T, B, 1] of Q_i [T, B, A], given the condition [T, B, C]."""
        weight = self.weight_1(condition).abs().unflatten(-1, (self.agents, -1))
        # A product of tiny matrices for each step costs more than the sum written out.
        hidden = functional.elu((q[..., None] * weight).sum(-2) + self.bias_1(condition))
        mixed = (hidden * self.weight_2(condition).abs()).sum(-1, keepdim=True)
        return mixed + self.bias_2(condition)


def greedy(q: Tensor, available: Tensor) -> Tensor:
    """The best available action, int64 [...], of Q [..., U]."""
    return q.masked_fill(~available, torch.finfo(q.dtype).min).argmax(-1)


def previous_actions(action: Tensor, actions: int, lag: int = 1) -> Tensor:
    """One-hot actions of `lag` steps ago [T, B, A, U], zero where there were none yet.

    Args:
        action: int64 [T, B, A].
        actions: U.
        lag: 1; 2 is what the published code of ACORM learns with.
    """
    encoded = functional.one_hot(action, actions).float()
    return torch.cat([torch.zeros_like(encoded[:lag]), encoded[:-lag]])[: len(action)]


def lambda_returns(
    reward: Tensor, next_value: Tensor, going: Tensor, cut: Tensor, gamma: float, lam: float
) -> Tensor:
    """TD(λ) targets [T, B, R]: G_t = r_t + γ [(1 - λ) V(s_{t+1}) + λ G_{t+1}].

    Args:
        reward: [T, B, 1].
        next_value: V(s_{t+1}), [T, B, R].
        going: float [T, B], 0 where the episode terminates and nothing follows.
        cut: bool [T, B], steps whose successor was not kept: nothing is known beyond, so the step
            before takes V alone.
        gamma: γ.
        lam: λ; 0 is the one-step target.
    """
    assert reward.shape[:2] == next_value.shape[:2] == going.shape == cut.shape
    target = reward + gamma * going[..., None] * next_value
    if lam == 0:
        return target
    steps = list(target.unbind(0))
    for t in reversed(range(len(steps) - 1)):
        more = lam * gamma * going[t] * (~cut[t + 1]).float()
        steps[t] = steps[t] + more[:, None] * (steps[t + 1] - next_value[t])
    return torch.stack(steps)


def win_rate(episodes: Episodes) -> dict[str, float]:
    """Share of battles won, of environments that say so in `info["battle_won"]`."""
    won = episodes.last.get("battle_won")
    return {} if won is None else {"win_rate": won.float().mean().item()}


def team_sizes(env: Any, agent: str) -> tuple[int, int, int]:
    """A, D and U of a team that observes vectors and has discrete actions.

    Raises:
        ConfigError: of another environment; `agent` is who needs these.
    """
    shape, space = env.single_observation_space.shape or (), env.single_action_space
    if env.num_agents is None or len(shape) != 2:
        raise ConfigError(f"env: {agent} needs several agents that observe vectors")
    if not isinstance(space, gym.spaces.MultiDiscrete) or len(set(space.nvec.tolist())) != 1:
        raise ConfigError(f"env: {agent} needs the same discrete actions for all, got {space}")
    if space.start.any():
        raise ConfigError(f"env: {agent} needs actions that begin at 0, got {space}")
    return shape[0], shape[1], int(space.nvec[0])

"""What groups of agents say about a skill: the two sides of a coordination objective.

Shape letters: B batch, A agents, F features of an agent, S groups, Z size of the skill.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from mi.objectives.skill import (
    CategoricalDiscriminator,
    ContrastiveUpperBound,
    GaussianDiscriminator,
)


def groups(agents: int, largest: int) -> Tensor:
    """Membership of all groups of 1 to `largest` agents, small ones first, float [S, A]."""
    chosen = [
        group
        for size in range(1, largest + 1)
        for group in itertools.combinations(range(agents), size)
    ]
    members = torch.zeros(len(chosen), agents)
    for row, group in enumerate(chosen):
        members[row, list(group)] = 1.0
    return members


class GroupInformation(nn.Module):
    """I(Z; S_C) for several groups C of agents at once [nats].

    One decoder serves all groups: it sees the features of a group's members, zeros for the others,
    and who the members are.

    Args:
        features: F.
        agents: A.
        skill_size: Z.
        discrete: one-hot skills, or unit vectors.
        bound: 'ba' (Barber-Agakov, lower) or 'club' (CLUB, upper).
    """

    def __init__(
        self,
        features: int,
        agents: int,
        skill_size: int,
        discrete: bool = True,
        bound: Literal["ba", "club"] = "ba",
    ) -> None:
        super().__init__()
        kind = CategoricalDiscriminator if discrete else GaussianDiscriminator
        decoder = kind(agents * features + agents, skill_size)
        self.objective = ContrastiveUpperBound(decoder) if bound == "club" else decoder

    def _inputs(self, x: Tensor, members: Tensor) -> Tensor:
        """[B, S, A F + A]."""
        assert x.shape[-2] == members.shape[1], (x.shape, members.shape)
        seen = (x[:, None] * members[..., None]).flatten(2)
        return torch.cat([seen, members.expand(len(x), -1, -1)], -1)

    def loss(self, x: Tensor, skill: Tensor, members: Tensor) -> Tensor:
        """Negative log-likelihood of the skill, averaged over samples and groups.

        Args:
            x: features of all agents [B, A, F].
            skill: [B, S, Z], or [B, 1, Z] for the same one in all groups.
            members: [S, A], 1 for a member.
        """
        inputs = self._inputs(x, members)
        return self.objective.loss(inputs, inputs, skill)

    def pointwise(self, x: Tensor, skill: Tensor, members: Tensor) -> Tensor:
        """The value of each sample for each group, [B, S], detached; arguments as `loss`."""
        inputs = self._inputs(x, members)
        return self.objective.pointwise(inputs, inputs, skill)


class Synergy(nn.Module):
    """What a team tells about its skill together and not apart: cooperation against an adversary.

    - `team`: I(Z; S) - λ agg I(Z; S_C) over groups C of up to `largest` agents (MASD);
    - `independent`: I(Z; S_i), a reward for each agent (DIAYN);
    - `factored`: I(Z_i; S_i) - λ I(Z_i; S_j≠i), each agent's own skill (DUSDi, Hu et al. 2024).

    Args:
        objective: which of the three.
        agents: A.
        features: F of an agent that the adversary reads.
        team_features: F of an agent that the cooperative decoder reads.
        skill_size: Z.
        discrete: one-hot skills, or unit vectors.
        weight: λ; without one there is no adversary.
        bound: of the penalty, see `GroupInformation`.
        largest: size of the largest penalised group.
        aggregate: 'mean', 'max' or 'sum' over the groups' information. The largest is that of the
            group which tells most over the whole batch: a maximum of single samples would pay for
            noise, and max_C I(Z;S_C) has the gradient of the group that attains it.
    """

    everyone: Tensor
    opposing: Tensor

    def __init__(
        self,
        objective: Literal["team", "independent", "factored"],
        agents: int,
        features: int,
        team_features: int,
        skill_size: int,
        discrete: bool = True,
        weight: float = 1.0,
        bound: Literal["ba", "club"] = "ba",
        largest: int = 1,
        aggregate: Literal["mean", "max", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.team, self.aggregate = objective == "team", aggregate
        each, all_but_one = torch.eye(agents), 1 - torch.eye(agents)
        opposing = groups(agents, largest) if self.team else all_but_one
        self.register_buffer("everyone", torch.ones(1, agents) if self.team else each, False)
        self.register_buffer("opposing", opposing, False)
        self.cooperative = GroupInformation(team_features, agents, skill_size, discrete)
        self.adversary = None
        if weight and objective != "independent":
            self.adversary = GroupInformation(features, agents, skill_size, discrete, bound)

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Members [S, A] of the penalised groups: all, or `samples` of them at random."""
        if not self.team or len(self.opposing) <= samples:
            return self.opposing
        order = torch.randperm(len(self.opposing), generator=generator, device=self.opposing.device)
        return self.opposing[order[:samples]]

    def cooperative_loss(self, team_x: Tensor, skill: Tensor) -> Tensor:
        """Loss of the decoder that works with the policy; arguments as `reward`."""
        return self.cooperative.loss(team_x, skill, self.everyone)

    def adversary_loss(self, x: Tensor, skill: Tensor, members: Tensor) -> Tensor:
        """Loss of the decoder that works against it; arguments as `reward`."""
        assert self.adversary is not None
        return self.adversary.loss(x, skill, members)

    def reward(
        self, team_x: Tensor, x: Tensor, skill: Tensor, members: Tensor, weight: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reward [B, R], its cooperative part [B, R] and the penalties [B, S], detached.

        R is 1 for a team and A otherwise.

        Args:
            team_x: features for the cooperative decoder [B, A, F'].
            x: features for the adversary [B, A, F].
            skill: [B, 1, Z], or [B, A, Z] where each agent has its own.
            members: of the penalised groups, as `draw` gives.
            weight: λ now.
        """
        gain = self.cooperative.pointwise(team_x, skill, self.everyone)
        if self.adversary is None:
            return gain, gain, gain[:, :0]
        penalties = self.adversary.pointwise(x, skill, members)
        penalty = self._aggregate(penalties) if self.team else penalties
        return gain - weight * penalty, gain, penalties

    def _aggregate(self, penalties: Tensor) -> Tensor:
        """One penalty of those of all groups, [B, S] to [B, 1]."""
        if self.aggregate == "max":
            return penalties.index_select(1, penalties.mean(0).argmax()[None])
        total = penalties.sum(1, keepdim=True)
        return total / penalties.shape[1] if self.aggregate == "mean" else total

"""A `BatchedEnv` small enough to predict by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from envs.base import BatchedEnv


class PointMass(BatchedEnv):
    """A point pushed to the origin of a square of half-width 1 [m].

    The observation is its position [m], the action its velocity [m/s]; an episode terminates
    within `radius` [m] of the origin and is truncated after 20 steps.
    """

    max_episode_steps = 20
    dt = 0.1  # [s]
    radius = 0.2

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", seed: int = 0) -> None:
        box = gym.spaces.Box(-1, 1, (2,), np.float32)
        super().__init__(num_envs, box, box, device, seed)
        self.position = torch.zeros(num_envs, 2, device=self.device)

    def _begin(self, mask: Tensor) -> None:
        start = self.rng.uniform(2, low=-1.0, high=1.0)
        self.position = torch.where(mask[:, None], start, self.position)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        self.position = (self.position + self.dt * action).clamp(-1, 1)
        distance = self.position.norm(dim=-1)
        reached = distance < self.radius
        info = {"success": reached, "velocity": action, "nested": {"distance": distance}}
        return -distance, reached, info

    def _observe(self) -> Tensor:
        return self.position.clone()

    def _state(self) -> dict[str, Any]:
        return {"position": self.position}

    def render(self) -> Tensor:  # type: ignore[override]
        """Images uint8 [N, 3, 16, 24]: green, the point a white pixel."""
        image = torch.zeros(self.num_envs, 3, 16, 24, dtype=torch.uint8)
        image[:, 1] = 255
        row = ((self.position[:, 1] + 1) / 2 * 15).long()
        column = ((self.position[:, 0] + 1) / 2 * 23).long()
        image[torch.arange(self.num_envs), :, row, column] = 255
        return image


class Team(BatchedEnv):
    """Agents that lose health by acting, and the team with them; every action 0 is a rest.

    Observations [N, 3, 1] are the health of each agent, in 0 .. 1; an agent without health is gone
    and may only rest, and the episode terminates with the last one.
    """

    max_episode_steps = 15
    num_agents = 3

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", seed: int = 0) -> None:
        box = gym.spaces.Box(0, 1, (3, 1), np.float32)
        super().__init__(num_envs, box, gym.spaces.MultiDiscrete([4] * 3), device, seed)
        self.health = torch.zeros(num_envs, 3, device=self.device)

    def _begin(self, mask: Tensor) -> None:
        start = self.rng.uniform(3, low=0.3)
        self.health = torch.where(mask[:, None], start, self.health)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        noise = self.rng.uniform(3, low=0.5)
        self.health = (self.health - 0.1 * action * noise).clamp(min=0)
        each = -action.float()
        return each.sum(-1), (self.health == 0).all(-1), {"reward_per_agent": each}

    def _observe(self) -> Tensor:
        return self.health[..., None].clone()

    def _state(self) -> dict[str, Any]:
        return {"health": self.health}

    def context(self) -> dict[str, Tensor]:
        alive = self.health > 0
        available = alive[..., None].repeat(1, 1, 4)
        available[..., 0] = True
        return {"alive": alive, "avail_actions": available, "state": self.health.clone()}

"""Point-robot: a point in the plane that must find a goal it is not told.

The task family of PEARL (Rakelly et al. 2019) as CORRO has it (Yuan & Lu, ICML 2022), and the
variant with goals in a square (Meta-DT, NeurIPS 2024).

Shape letters: N environments, K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from envs.tasks import TaskFamily

STEP = 0.1
"""Distance per unit of action along each axis [m]."""


class PointRobot(TaskFamily):
    """Point-robot: go to the row's goal, which is not observed.

    Observation: position (2) [m]. Action: displacement along x and y, [-1, 1] times 0.1 m. Reward:
    minus the distance to the goal after the move [m]. Every episode starts at the origin; none
    terminates.

    - `goals="semicircle"`: (cos θ, sin θ), θ ~ U[0, π), 10 steps. The best possible return is -3.84
      on average over θ, that of standing still -10.
    - `goals="square"`: U[-1, 1)², 20 steps, as in Meta-DT's code. Standing still returns -15.3 on
      average.

    Args:
        num_envs: N.
        device: where all tensors live.
        seed: see `BatchedEnv`; nothing but the tasks is random here.
        goals: 'semicircle' or 'square'.
        num_tasks: K.
        task_seed: of the K goals.
        tasks: goals [K, 2] [m] instead of sampled ones.
        task_ids: the task of every row, N integers below K; row i has task i % K if None.

    Raises:
        ValueError: an argument out of range.
    """

    task_names = ("goal_x", "goal_y")

    def __init__(
        self,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        goals: Literal["semicircle", "square"] = "semicircle",
        num_tasks: int = 40,
        task_seed: int = 0,
        tasks: Any = None,
        task_ids: Any = None,
    ) -> None:
        horizons = {"semicircle": 10, "square": 20}
        if goals not in horizons:
            raise ValueError(f"goals={goals!r}: expected one of {', '.join(horizons)}")
        self.goals, self.max_episode_steps = goals, horizons[goals]
        farthest = 2 * STEP * self.max_episode_steps  # twice what can be reached: room for rounding
        super().__init__(
            num_envs,
            gym.spaces.Box(-farthest, farthest, (2,), np.float32),
            gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
            device,
            seed,
        )
        self.assign(num_envs, self.device, num_tasks, task_seed, tasks, task_ids)
        self.position = torch.zeros(num_envs, 2, device=self.device)

    def sample_tasks(self, uniform: Tensor) -> Tensor:
        """Goals [K, 2] [m]."""
        if self.goals == "square":
            return 2 * uniform - 1
        angle = math.pi * uniform[:, 0]
        return torch.stack([angle.cos(), angle.sin()], 1)

    def rewards(self, task: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See `TaskFamily`."""
        return -torch.linalg.vector_norm(batch["next_observations"] - task, dim=-1)

    def _begin(self, mask: Tensor) -> None:
        self.position.masked_fill_(mask[:, None], 0)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        self.position.add_(action, alpha=STEP)
        reward = self.rewards(self.parameters, {"next_observations": self.position})
        return reward, torch.zeros_like(reward, dtype=torch.bool), {}

    def _observe(self) -> Tensor:
        return self.position.clone()

    def _state(self) -> dict[str, Any]:
        return {"position": self.position} | super()._state()

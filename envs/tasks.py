"""Families of tasks: one environment whose rows may each have a task of their own.

A family is a distribution of task parameters. Task i is a function of (`task_seed`, i) alone, so
the first tasks of a large set are the small set.

Shape letters: N environments, K tasks, P task parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.base import BatchedEnv, CounterRNG


class TaskFamily(BatchedEnv):
    """What families have in common, to be mixed into a `BatchedEnv`.

    `info["task"]` float32 [N, P] are the rows' parameters and `info["task_id"]` int64 [N] their
    indices; both are `context()`, thus there after a reset and a step. A row keeps its task.

    Attributes:
        task_names: the P parameters' names.
        tasks: all parameters, float32 [K, P].
        parameters: the rows' own, [N, P].
        task_id: the rows' tasks, [N].
        velocity_size: V, width of `info["velocity"]`; 0 without one.
        relabels: whether tasks differ in nothing but `rewards`.
    """

    task_names: tuple[str, ...]
    tasks: Tensor
    parameters: Tensor
    task_id: Tensor
    velocity_size: int = 0
    relabels: bool = True

    def sample_tasks(self, uniform: Tensor) -> Tensor:
        """Parameters [K, P] from uniform draws in [0, 1), [K, P]."""
        raise NotImplementedError

    def rewards(self, task: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """What transitions pay in a task of one's choice, [...]: exact relabelling.

        Args:
            task: parameters [..., P].
            batch: `actions` [..., U], `next_observations` [..., D] and `velocity` [..., V], as in
                `envs.data.TaskData`.
        """
        raise NotImplementedError

    def velocity(self, info: Mapping[str, Tensor]) -> Tensor:
        """What a step's `info` says of velocity, [N, V]."""
        if not self.velocity_size:
            return torch.zeros(self.num_envs, 0, device=self.device)
        return info["velocity"].view(self.num_envs, self.velocity_size)

    def assign(
        self,
        num_envs: int,
        device: torch.device | str,
        num_tasks: int,
        task_seed: int,
        tasks: Any = None,
        task_ids: Any = None,
    ) -> None:
        """Sample or check the tasks and give every row its own.

        Raises:
            ValueError: parameters of a wrong shape or not finite, or ids out of range.
        """
        if tasks is None:
            if num_tasks < 1:
                raise ValueError(f"num_tasks={num_tasks}: expected at least 1")
            rng = CounterRNG(num_tasks, "cpu", task_seed)
            rng.begin(torch.ones(num_tasks, dtype=torch.bool))
            tasks = self.sample_tasks(rng.uniform(len(self.task_names)))
        self.tasks = torch.as_tensor(tasks, dtype=torch.float32)
        shape = tuple(self.tasks.shape)
        if len(shape) != 2 or not shape[0] or shape[1] != len(self.task_names):
            names = ", ".join(self.task_names[:4]) + ", …" * (len(self.task_names) > 4)
            raise ValueError(
                f"tasks: expected shape (K, {len(self.task_names)}) for {names}; got {shape}"
            )
        if not bool(torch.isfinite(self.tasks).all()):
            raise ValueError("tasks: not finite")
        if task_ids is None:
            task_ids = np.arange(num_envs) % shape[0]
        ids = torch.as_tensor(np.asarray(task_ids))
        if ids.shape != (num_envs,) or ids.is_floating_point():
            raise ValueError(f"task_ids: expected {num_envs} integers, got {task_ids!r:.80}")
        if not bool(((ids >= 0) & (ids < shape[0])).all()):
            raise ValueError(f"task_ids: expected 0 .. {shape[0] - 1}, got {task_ids!r:.80}")
        self.task_id = ids.to(device, torch.int64)
        self.tasks = self.tasks.to(device)
        self.parameters = self.tasks[self.task_id]

    def context(self) -> dict[str, Tensor]:
        """`task` [N, P] and `task_id` [N]."""
        return {"task": self.parameters.clone(), "task_id": self.task_id.clone()}

    def _state(self) -> dict[str, Any]:
        return {"task": self.parameters, "task_id": self.task_id}

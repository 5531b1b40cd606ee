"""Sampling from episodes of many tasks at once.

Shape letters as in `agents/base.py`; M tasks, E episodes of a task, T steps of an episode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.core.config import ConfigError
from agents.core.context import Coordinates
from envs.base import BatchedEnv
from envs.data import TaskData, load
from envs.tasks import TaskFamily


class TaskReplay:
    """Fixed episodes of M tasks, packed so that a sample is one gather.

    Args:
        fields: name -> [M, E, T, width], anything where the mask is False.
        mask: steps that exist, bool [M, E, T]; those of an episode come first.

    Raises:
        ValueError: a task without a single step, or fields whose shapes do not fit.
    """

    def __init__(self, fields: dict[str, Tensor], mask: Tensor) -> None:
        for name, value in fields.items():
            if value.shape[:3] != mask.shape:
                raise ValueError(f"{name}: expected {tuple(mask.shape)} steps, got {value.shape}")
        self.names, self.widths = list(fields), [value.shape[-1] for value in fields.values()]
        self.mask, (self.tasks, self.episodes, self.length) = mask, mask.shape
        rows = torch.cat([*fields.values()], -1).masked_fill(~mask[..., None], 0)
        self.rows = rows.flatten(0, 2)  # [M E T, width]
        steps, exists = mask.flatten(1), mask.any(-1)
        self.num_steps, self.num_episodes = steps.sum(1), exists.sum(1)
        if bool((self.num_steps == 0).any()):
            empty = int((self.num_steps == 0).nonzero()[0, 0])
            raise ValueError(f"task {empty}: expected at least one step, got none")
        # Where the existing steps and episodes of every task are: those that exist first.
        self._steps = steps.to(torch.int8).argsort(stable=True, dim=1, descending=True)
        self._where = exists.to(torch.int8).argsort(stable=True, dim=1, descending=True)

    def draw_steps(self, task: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Rows of uniform steps of tasks int64 [...], int64 [..., count]."""
        uniform = torch.rand((*task.shape, count), generator=generator, device=task.device)
        index = (uniform * self.num_steps[task][..., None]).long()
        step = self._steps[task[..., None], index]
        return step + task[..., None] * (self.episodes * self.length)

    def draw_episodes(self, task: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Uniform episodes of tasks int64 [...], counted over all tasks, int64 [..., count]."""
        uniform = torch.rand((*task.shape, count), generator=generator, device=task.device)
        index = (uniform * self.num_episodes[task][..., None]).long()
        return self._where[task[..., None], index] + task[..., None] * self.episodes

    def steps(self, rows: Tensor) -> dict[str, Tensor]:
        """Fields of rows int64 [...], [..., width] each."""
        packed = self.rows.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        return dict(zip(self.names, packed.split(self.widths, -1), strict=True))

    def whole(self, episode: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Fields [..., T, width] of episodes int64 [...], and their mask [..., T]."""
        time = torch.arange(self.length, device=episode.device)
        fields = self.steps(episode[..., None] * self.length + time)
        return fields, self.mask.flatten(0, 1)[episode]


def draw_tasks(shape: tuple[int, int], tasks: int, generator: torch.Generator) -> Tensor:
    """Distinct tasks in every row, int64 [shape[0], min(shape[1], tasks)]."""
    noise = torch.rand((shape[0], tasks), generator=generator, device=generator.device)
    return noise.argsort(1)[:, : shape[1]]


def training_tasks(dataset: str, tier: str, env: BatchedEnv, device: torch.device) -> TaskData:
    """The training tasks of a dataset for an environment.

    Raises:
        ConfigError: no dataset is given, or it is of another family or other spaces.
        DataError: there is none, or it is refused.
    """
    if not dataset:
        raise ConfigError("dataset: expected the directory or id of tasks' data, got none")
    data = load(dataset, tier).select("train").to(device)
    spaces = env.single_observation_space.shape, env.single_action_space.shape
    actual = tuple(data.states.shape[3:]), tuple(data.actions.shape[3:])
    if actual != spaces:
        what = f"observations and actions of shapes {spaces}, as the environment has"
        raise ConfigError(f"dataset={dataset}: expected {what}, got {actual}")
    spec = getattr(env, "spec", None)
    own = f"infomax/{data.family.replace('/', '-')}-v0"
    if data.family and isinstance(env, TaskFamily) and spec is not None and spec.id != own:
        raise ConfigError(f"dataset={dataset}: expected data of {spec.id}, got {data.family}")
    return data


def transitions(data: TaskData) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observation, action, reward and next observation, [K, E, T, ...] each."""
    return data.observations, data.actions, data.rewards, data.next_observations


def pack(data: TaskData, coordinates: Coordinates, scale: Tensor, shift: Tensor) -> TaskReplay:
    """The data in the networks' units, after fitting these where they are not.

    Args:
        data: training tasks.
        coordinates: of transitions.
        scale: half the range of actions [U].
        shift: their middle [U].
    """
    if not coordinates.fitted:
        coordinates.fit(data.mask, *transitions(data))
    chosen, answer = coordinates(*transitions(data))
    fields = {
        "chosen": chosen,
        "answer": answer,
        "action": (data.actions - shift) / scale,
        "reward": coordinates.reward(data.rewards)[..., None],
        "next": coordinates.observe(data.next_observations),
        "terminated": data.terminations[..., None].float(),
    }
    return TaskReplay(fields, data.mask)

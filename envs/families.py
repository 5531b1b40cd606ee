"""Families of MuJoCo tasks: half-cheetah-vel and -dir, ant-dir, hopper- and walker-param.

What offline meta-RL is measured on since FOCAL and CORRO (Yuan & Lu, ICML 2022): the reward, or the
body, differs between tasks and is not observed. Observations, rewards, horizons, control steps and
distributions are those of CORRO's environments; bodies and starts are those of Gymnasium's v5
(`envs.locomotion`), because MuJoCo no longer reads the originals.

Shape letters: N environments, K tasks, P task parameters.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import mujoco
import torch
from torch import Tensor

from envs.locomotion import Ant, HalfCheetah, Hopper, Locomotion, Walker2d
from envs.mujoco import Backend, BatchedSim, MujocoEnv
from envs.tasks import TaskFamily


class FamilyTask(Locomotion):
    """A locomotion task whose reward or body depends on the row's parameters.

    Attributes:
        task_names: of the P parameters.
        num_tasks: K where nobody says otherwise.
        velocity_size: V.
        parameters: the rows', float32 [N, P]; the environment sets it.
    """

    task_names: tuple[str, ...]
    parameters: Tensor
    max_episode_steps = 200
    num_tasks: int = 40
    velocity_size: int = 1

    def sample(self, uniform: Tensor) -> Tensor:
        """Parameters [K, P] from uniform draws in [0, 1)."""
        raise NotImplementedError

    def pay(self, task: Tensor, velocity: Tensor) -> Tensor:
        """Reward [...] for a velocity [..., V] in a task [..., P], without the cost of actions."""
        raise NotImplementedError

    def progress(self, velocity: Tensor) -> Tensor:
        """See `Locomotion`."""
        return self.pay(self.parameters, velocity if velocity.dim() == 2 else velocity[:, None])

    def alive(self, observation: Tensor) -> Tensor | float:
        """Reward for not having fallen, from an observation [..., D]."""
        return 0.0

    def fields(self, model: mujoco.MjModel) -> dict[str, Tensor]:
        """Fields of the model that the rows' parameters change, [N, ...]."""
        return {}


class _Cheetah(FamilyTask, HalfCheetah):
    observation_size = 20
    control_cost = 0.05

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        planar = sim.qpos[:, :1], torch.zeros_like(sim.qpos[:, :1]), sim.qpos[:, 1:2]
        self._observed = (*self._observed, *planar)

    def observe(self, sim: BatchedSim) -> Tensor:
        """See `Task`: positions without the first, velocities, and where the torso is [m]."""
        obs = torch.cat(self._observed, 1)
        obs[:, -1] += 0.7  # the torso's height in the model
        return obs.float()


class HalfCheetahVel(_Cheetah):
    """Run at a velocity: 6 torques, 20 observations, 20 Hz, 200 steps, none terminates.

    Observation: joint positions without x (8), velocities (9), position of the torso (3). Reward:
    -|v - task| - 0.05 |action|². Task: v ~ U[0, 3) [m/s].
    """

    task_names = ("velocity",)

    def sample(self, uniform: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return 3 * uniform

    def pay(self, task: Tensor, velocity: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return (velocity - task)[..., 0].abs().neg()


class HalfCheetahDir(_Cheetah):
    """Run forwards or backwards: as half-cheetah-vel, with two tasks.

    Reward: task v - 0.05 |action|². Task: 1 for even indices, -1 for odd ones.
    """

    task_names = ("direction",)
    num_tasks = 2

    def sample(self, uniform: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return (1 - 2 * (torch.arange(len(uniform)) % 2))[:, None]

    def pay(self, task: Tensor, velocity: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return (velocity * task)[..., 0]


class AntDir(FamilyTask, Ant):
    """Run in a direction: 8 torques, 27 observations, 20 Hz, 200 steps, none terminates.

    Observation: positions without x and y (13), velocities (14). Reward: velocity of the torso
    along the direction [m/s]; nothing for actions or survival. Task: (cos θ, sin θ), θ ~ U[0, 2π).
    """

    task_names = ("direction_x", "direction_y")
    control_cost = 0.0
    terminates = False
    velocity_size = 2

    def sample(self, uniform: Tensor) -> Tensor:
        """See `FamilyTask`."""
        angle = 2 * math.pi * uniform[:, 0]
        return torch.stack([angle.cos(), angle.sin()], 1)

    def pay(self, task: Tensor, velocity: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return (velocity * task).sum(-1)

    def healthy(self, sim: BatchedSim) -> None:  # type: ignore[override]
        """See `Locomotion`: falling ends nothing."""


class _Params(FamilyTask):
    """A body whose inertial and contact parameters are multiplied, each by a number of its own.

    A field's entries are those of MuJoCo's, the world's included, as in the published code.
    """

    bases: ClassVar[dict[str, float]]
    """Field of the model -> its factor is base^(3 task)."""
    hidden = 0
    timestep = 4e-3  # [s]

    @property
    def task_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """A name such as `body_mass_3` for each entry of each field."""
        shapes = self._defaults(self.model())
        return tuple(f"{name}_{i}" for name, v in shapes.items() for i in range(v.numel()))

    def _defaults(self, model: mujoco.MjModel) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(model, name)) for name in self.bases}

    def model(self) -> mujoco.MjModel:
        """The compiled model, with the published physics step."""
        model = super().model()
        model.opt.timestep = self.timestep
        return model

    def sample(self, uniform: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return 2 * uniform - 1

    def pay(self, task: Tensor, velocity: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return velocity[..., 0]

    def observe(self, sim: BatchedSim) -> Tensor:
        """See `Task`: positions, velocities."""
        return torch.cat((sim.qpos, sim.qvel), 1).float()

    def fields(self, model: mujoco.MjModel) -> dict[str, Tensor]:
        """See `FamilyTask`."""
        fields, start = {}, 0
        for name, default in self._defaults(model).items():
            part = self.parameters[:, start : start + default.numel()].double()
            start += default.numel()
            factor = self.bases[name] ** (3 * part)
            fields[name] = default.to(part.device) * factor.view(-1, *default.shape)
        return fields


class HopperParam(_Params, Hopper):
    """Hop with a body of 41 unknown parameters: 3 torques, 12 observations, 62.5 Hz, 200 steps.

    Observation: positions, x included (6), velocities (6). Reward: forward velocity - 0.001
    |action|²; falling ends nothing. Task, each U[-1, 1): masses (5), inertias (15) and contact
    frictions (15) times 1.5^(3 task), joint dampings (6) times 1.3^(3 task).
    """

    observation_size = 12
    terminates = False
    bases: ClassVar = {
        "body_mass": 1.5,
        "body_inertia": 1.5,
        "dof_damping": 1.3,
        "geom_friction": 1.5,
    }

    def healthy(self, sim: BatchedSim) -> None:  # type: ignore[override]
        """See `Locomotion`: falling ends nothing."""


class WalkerParam(_Params, Walker2d):
    """Walk with a body of 32 unknown parameters: 6 torques, 18 observations, 62.5 Hz, 200 steps.

    Observation: positions, x included (9), velocities (9). Reward: forward velocity + 1 - 0.001
    |action|²; an episode ends where the torso is below 0.5 m. Task, each U[-1, 1): masses (8) and
    contact frictions (24) times 1.5^(3 task).
    """

    observation_size = 18
    bases: ClassVar = {"body_mass": 1.5, "geom_friction": 1.5}

    def healthy(self, sim: BatchedSim) -> Tensor:
        """Torso higher than 0.5 m."""
        return sim.qpos[:, 1] > 0.5

    def alive(self, observation: Tensor) -> Tensor:
        """See `FamilyTask`."""
        return (observation[..., 1] > 0.5).float()


class LocomotionFamily(TaskFamily, MujocoEnv):
    """Batched MuJoCo with a task for each row."""

    def __init__(
        self,
        task: FamilyTask,
        num_envs: int,
        device: torch.device | str,
        seed: int,
        tasks: tuple[int, int, Any, Any],
        backend: Backend,
        num_threads: int,
    ) -> None:
        self.family, self.task_names = task, task.task_names
        self.assign(num_envs, device, *tasks)
        task.parameters = self.parameters
        MujocoEnv.__init__(self, task, num_envs, device, seed, backend, num_threads)
        self.velocity_size = task.velocity_size
        fields = task.fields(self.sim.model)
        self.relabels = not fields
        if fields:
            self.set_params(fields)

    def sample_tasks(self, uniform: Tensor) -> Tensor:
        """See `TaskFamily`."""
        return self.family.sample(uniform)

    def rewards(self, task: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """See `TaskFamily`."""
        cost = self.family.control_cost * batch["actions"].square().sum(-1)
        alive = self.family.alive(batch["next_observations"])
        return self.family.pay(task, batch["velocity"]) + alive - cost

    def _state(self) -> dict[str, Any]:
        return MujocoEnv._state(self) | TaskFamily._state(self)


def family(task: type[FamilyTask]) -> Callable[..., LocomotionFamily]:
    """The entry of `ENVS` for a family."""

    def make(
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        num_tasks: int = task.num_tasks,
        task_seed: int = 0,
        tasks: Any = None,
        task_ids: Any = None,
        backend: Backend = "auto",
        num_threads: int = 0,
    ) -> LocomotionFamily:
        chosen = (num_tasks, task_seed, tasks, task_ids)
        return LocomotionFamily(task(), num_envs, device, seed, chosen, backend, num_threads)

    arguments = """Args:
    num_envs: N.
    device: 'cpu' or a CUDA device.
    seed: of the start states.
    num_tasks: K.
    task_seed: of the K tasks' parameters.
    tasks: task parameters [K, P] instead of sampled ones.
    task_ids: the task of every row, N integers below K; row i has task i % K if None.
    backend: 'auto', 'batch' (C MuJoCo) or 'warp' (mujoco_warp).
    num_threads: threads of the C engine; 0 takes all processors.
"""
    make.__doc__ = f"{inspect.getdoc(task)}\n\n{arguments}"
    return make

"""Gymnasium's MuJoCo locomotion tasks (v5), batched: half-cheetah, hopper, walker2d and ant.

The observations, rewards, terminations and distributions of starts are those of Farama Gymnasium's
`HalfCheetah-v5`, `Hopper-v5`, `Walker2d-v5` and `Ant-v5` with default arguments, but for the ant's
contact forces, which no batched engine computes: it is
`gym.make("Ant-v5", include_cfrc_ext_in_observation=False, contact_cost_weight=0)`.

Shape letters: N environments, U action features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import torch
from torch import Tensor

from envs.base import CounterRNG
from envs.mujoco import BatchedSim, Task

ASSETS = Path(__file__).parent / "assets"


class Locomotion(Task):
    """Run forward: reward = `progress(velocity)` + 1 while healthy - cost x |action|².

    `info["velocity"]` float32 [N] is the mean velocity over the step [m/s]; the world position is
    not observed.

    Attributes:
        asset: MJCF file under `envs/assets`.
        control_cost: weight of the squared action.
        reset_noise: half-width of the uniform noise on the start position, and, where
            `normal_velocity`, standard deviation of the velocity (else again half-width).
        hidden: leading entries of qpos (world position) that are not observed.
    """

    asset: str
    control_cost: float
    max_episode_steps = 1000
    observation_bound = 1e6  # finite, as environment checkers ask; far beyond what occurs
    reset_noise: float = 0.1
    normal_velocity: bool = True
    hidden: int = 1

    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        return mujoco.MjModel.from_xml_path(str(ASSETS / self.asset))

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        self.dt = float(sim.model.opt.timestep) * self.frame_skip
        self._now = sim.qpos[:, 0]
        self._x = torch.zeros_like(self._now)
        self._observed = (sim.qpos[:, self.hidden :], sim.qvel)

    def progress(self, velocity: Tensor) -> Tensor:
        """Reward [N] for the mean velocity over the step; tasks of a family differ here."""
        return velocity

    def healthy(self, sim: BatchedSim) -> Tensor | None:
        """Rows that have not fallen, bool [N]; None where falling ends nothing."""
        return None

    def control(self, sim: BatchedSim, action: Tensor) -> None:
        """See `Task`; remembers where the step began."""
        self._x.copy_(self._now)
        sim.ctrl.copy_(action)

    def velocity(self, sim: BatchedSim) -> Tensor:
        """Mean velocity over the step that has just been simulated, in the engine's precision."""
        return (self._now - self._x) / self.dt

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """See `Task`."""
        velocity = self.velocity(sim)
        reward = self.progress(velocity)
        self._healthy = self.healthy(sim)
        if self._healthy is not None:
            reward = reward + self._healthy
        reward = reward - self.control_cost * sim.ctrl.square().sum(1)
        return reward.float(), {"velocity": velocity.float()}

    def terminated(self, sim: BatchedSim) -> Tensor:
        """See `Task`; called after `reward`."""
        return super().terminated(sim) if self._healthy is None else ~self._healthy

    def observe(self, sim: BatchedSim) -> Tensor:
        """See `Task`: positions without the world position, then velocities."""
        return torch.cat(self._observed, 1).float()

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`."""
        scale = (self.reset_noise * mask)[:, None]
        nq, nv = sim.model.nq, sim.model.nv
        noise = rng.uniform(nq if self.normal_velocity else nq + nv, low=-1.0)
        sim.qpos.add_(scale * noise[:, :nq])
        sim.qvel.add_(scale * (rng.normal(nv) if self.normal_velocity else noise[:, nq:]))


class HalfCheetah(Locomotion):
    """`HalfCheetah-v5`: 6 torques, 17 observations, 20 Hz."""

    asset = "half_cheetah.xml"
    frame_skip = 5
    terminates = False
    observation_size = 17
    control_cost = 0.1

    def model(self) -> mujoco.MjModel:
        """The compiled model, 14 kg in all."""
        model = super().model()
        mujoco.mj_setTotalmass(model, 14)
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model


class Legged(Locomotion):
    """A planar robot that must not fall: small uniform noise, observed velocities within ±10."""

    frame_skip = 4
    control_cost = 1e-3
    reset_noise = 5e-3
    normal_velocity = False

    def observe(self, sim: BatchedSim) -> Tensor:
        """See `Task`."""
        return torch.cat((sim.qpos[:, 1:], sim.qvel.clamp(-10, 10)), 1).float()


class Hopper(Legged):
    """`Hopper-v5`: 3 torques, 11 observations, 125 Hz."""

    asset = "hopper.xml"
    observation_size = 11

    def healthy(self, sim: BatchedSim) -> Tensor:
        """Higher than 0.7 m, tilted by less than 0.2 rad, nothing else beyond ±100."""
        z, angle = sim.qpos[:, 1], sim.qpos[:, 2]
        rest = torch.maximum(sim.qpos[:, 2:].abs().amax(1), sim.qvel.abs().amax(1))
        return (z > 0.7) & (angle.abs() < 0.2) & (rest < 100)


class Walker2d(Legged):
    """`Walker2d-v5`: 6 torques, 17 observations, 125 Hz."""

    asset = "walker2d.xml"
    observation_size = 17

    def healthy(self, sim: BatchedSim) -> Tensor:
        """Torso between 0.8 and 2 m high, tilted by less than 1 rad."""
        z, angle = sim.qpos[:, 1], sim.qpos[:, 2]
        return (z > 0.8) & (z < 2) & (angle.abs() < 1)


class Ant(Locomotion):
    """`Ant-v5` without contact forces: 8 torques, 27 observations, 20 Hz.

    Gymnasium measures velocity where the torso was at the last evaluation of the dynamics, a stage
    of the Runge-Kutta step short of the state, and so does this.

    On mujoco_warp the friction of its feet differs from C MuJoCo's: the two lay the axes of a
    capsule's friction pyramid differently. Without contact they agree.
    """

    asset = "ant.xml"
    frame_skip = 5
    observation_size = 27
    control_cost = 0.5
    hidden = 2

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self._torso = sim.field("xpos")[:, sim.model.body("torso").id, :2]
        self._x_y = torch.zeros_like(self._torso)

    def control(self, sim: BatchedSim, action: Tensor) -> None:
        """See `Task`."""
        sim.ctrl.copy_(action)

    def velocity(self, sim: BatchedSim) -> Tensor:
        """Mean horizontal velocity [N, 2] over the step [m/s]."""
        velocity = (self._torso - self._x_y) / self.dt
        self._x_y.copy_(self._torso)
        return velocity

    def progress(self, velocity: Tensor) -> Tensor:
        """Reward [N] for the mean velocity [N, 2] over the step."""
        return velocity[:, 0]

    def healthy(self, sim: BatchedSim) -> Tensor:
        """Torso between 0.2 and 1 m high, and everything finite."""
        z = sim.qpos[:, 2]
        finite = torch.isfinite(sim.qpos.sum(1) + sim.qvel.sum(1))
        return (z >= 0.2) & (z <= 1) & finite

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`."""
        super().sample_reset(sim, rng, mask)
        self._x_y.copy_(torch.where(mask[:, None], sim.qpos[:, :2], self._x_y))

    def state(self) -> dict[str, Tensor]:
        """See `Task`."""
        return {"x_y": self._x_y}

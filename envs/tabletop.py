"""Tabletop manipulation in batched MuJoCo: a gripper, one to three cubes, and downstream tasks.

Without a task the environment is for reward-free skill discovery: it reports the reward terms an
agent may combine (`reach`, `safety`) and the physical facts behind them.

Shape letters: N environments, M objects, K reward terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.base import CounterRNG
from envs.mujoco import Backend, BatchedSim, MujocoEnv, Task
from envs.robots import ROBOTS, compact_object, outside

ASSETS = Path(__file__).parent / "assets"
TASKS = ("none", "push", "safe-push", "sequence", "lift", "place")

HALF_SIZE = 0.025  # of a cube [m]
TABLE = 0.45  # half the table's side [m]; its top is z = 0
REACH_OF_START = {"easy": (0.0, 0.15, 0.07, 0.22), "hard": (0.27, 0.27, 0.24, 0.30)}
"""Distance from the table's centre and height of the tool at the start: min, max, min, max [m]."""
PRESS_FORCE = 10.0  # between gripper and table, above which it counts as pressing [N]
MAX_SPEED = 1.0  # of the tool [m/s]
LIFTED = 0.06  # height of a cube's centre that only lifting reaches [m]
TOLERANCE = 0.05  # distance to a goal that counts as success [m]
BIN = (0.22, 0.0)  # centre of the bin [m]
BIN_HALF_SIZE = 0.06  # inside the bin's walls [m]
VIOLATION_BUDGET = 5.0  # violations an episode of safe-push may have
COLOURS = ((0.86, 0.27, 0.22, 1), (0.22, 0.62, 0.33, 1), (0.20, 0.42, 0.80, 1))


class Tabletop(Task):
    """Cubes on a table, 20 Hz control; see `make_tabletop` for the arguments.

    The observation is the robot's columns, then every object's, then the downstream task's, so the
    leading columns are the same with and without a task. All in SI units.

    Reward terms (`info["reward_terms"]` float32 [N, K], named by `reward_names`):

    - `reach` = 1 - tanh(10 d), d the distance [m] from the tool to the nearest object
      (the shape of IsaacGymEnvs' FrankaCubeStack);
    - `safety` = -(number of violated constraints): tool at the workspace's edge, tool faster than
      1 m/s, gripper pressing the table with more than 10 N, an object off the table, a joint at its
      limit;
    - `task` (with a downstream task) = -distance to the goal [m] + 1 while the goal is met.

    `reward` is `reach + safety` without a task, `task + 0.1 reach` with one.

    Info, all of the state after the step: `object_position` [N, M, 3] [m]; bool [N, M] `contact`
    (a finger touches the object), `grasp` (both do), `lifted`, `off_table`; bool [N] `at_edge`,
    `pressing`, `at_joint_limit`; `speed` [N] [m/s]; `cost` [N], the number of violated constraints;
    with a task bool [N] `success`.
    """

    frame_skip = 10
    observation_bound = 1000.0  # finite, as environment checkers ask; far beyond what occurs

    def __init__(
        self,
        robot: str = "gantry",
        objects: int = 1,
        start: Literal["easy", "hard"] = "hard",
        task: str = "none",
        horizon: int = 50,
        reward_scale: Mapping[str, float] | None = None,
    ) -> None:
        if task == "sequence" and objects == 1:
            objects = 2
        for name, value, choices in (
            ("robot", robot, tuple(ROBOTS)),
            ("objects", objects, (1, 2, 3)),
            ("start", start, tuple(REACH_OF_START)),
            ("task", task, TASKS),
        ):
            if value not in choices:
                raise ValueError(
                    f"{name}={value!r}: expected one of {', '.join(map(str, choices))}"
                )
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: expected at least 1")
        self.robot, self.objects, self.start, self.task = ROBOTS[robot](), objects, start, task
        self.max_episode_steps = horizon
        self.reward_names = ("reach", "safety") + (("task",) if task != "none" else ())
        unknown = set(reward_scale or ()) - set(self.reward_names)
        if unknown:
            raise ValueError(
                f"reward_scale: unknown term {min(unknown)!r}, expected some of {self.reward_names}"
            )
        self._scales = [(reward_scale or {}).get(name, 1.0) for name in self.reward_names]
        first = self.robot.observation_size
        extra_objects = 11 * (objects - 1)
        self.goal_columns = {"none": 0, "push": 6, "safe-push": 7, "lift": 3, "place": 6}.get(
            task, 6 + objects
        )
        self.observation_size = first + self.robot.object_size + extra_objects + self.goal_columns
        starts = [first, *(first + self.robot.object_size + 11 * i for i in range(objects - 1))]
        self.skill_columns = [start + axis for start in starts for axis in range(3)]
        """Observation columns that hold the objects' positions: what skills are about."""

    def model(self) -> mujoco.MjModel:
        """The robot's MJCF with table, floor, objects, goals and contact sensors added."""
        spec = mujoco.MjSpec.from_file(str(ASSETS / self.robot.asset))
        world, box = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX
        surface: dict[str, Any] = {"friction": [1, 0.005, 0.0001]}
        world.add_geom(
            name="table",
            type=box,
            pos=[0, 0, -0.05],
            size=[TABLE, TABLE, 0.05],
            rgba=[0.80, 0.74, 0.64, 1],
            **surface,
        )
        world.add_geom(  # catches what falls off, only 10 cm lower
            name="floor",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            pos=[0, 0, -0.1],
            size=[2, 2, 0.1],
            rgba=[0.62, 0.66, 0.70, 1],
            **surface,
        )
        for i in range(self.objects):
            body = world.add_body(name=f"object{i}", pos=[0.12 * i, 0, HALF_SIZE])
            body.add_freejoint(name=f"object{i}")
            body.add_geom(
                name=f"object{i}",
                type=box,
                size=[HALF_SIZE] * 3,
                mass=0.1,
                condim=4,
                rgba=COLOURS[i],
                **surface,
            )
            for finger in ("left_finger", "right_finger"):
                _contact_sensor(spec, f"{finger}_object{i}", finger, f"object{i}")
        _contact_sensor(spec, "press", "hand", "table", net_force_of_subtree=True)
        if self.task not in ("none", "lift", "place"):
            for i in range(self._goals):
                goal = world.add_body(name=f"goal{i}", mocap=True, pos=[0, 0, 0.001])
                goal.add_geom(
                    type=box,
                    size=[0.03, 0.03, 0.001],
                    contype=0,
                    conaffinity=0,
                    rgba=[*COLOURS[i][:3], 0.6],
                )
        if self.task == "place":
            for axis in (0, 1):
                for side in (-1, 1):
                    position, size = [*BIN, 0.015], [BIN_HALF_SIZE + 0.01] * 2 + [0.015]
                    position[axis] += side * (BIN_HALF_SIZE + 0.005)
                    size[axis] = 0.005
                    world.add_geom(type=box, pos=position, size=size, rgba=[0.35, 0.38, 0.45, 1])
        return spec.compile()

    @property
    def _goals(self) -> int:
        return self.objects if self.task == "sequence" else 1

    def action_space(self, model: mujoco.MjModel) -> gym.spaces.Box:
        """The robot's action, every component in [-1, 1]."""
        return gym.spaces.Box(-1.0, 1.0, (self.robot.action_size,), np.float32)

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        self.robot.bind(sim)
        n, device = sim.num_envs, sim.device
        self._sensors = sim.field("sensordata")
        self._scale = torch.tensor(self._scales, device=device)
        # What counts as out of bounds; the tool may be as low, and an object as high, as it gets.
        like, inf = {"dtype": sim.qpos.dtype, "device": device}, torch.inf
        sides = torch.tensor([0.005, 0.005, -inf], **like)
        self._workspace = self.robot.low + sides, self.robot.high - 0.005
        self._table = (
            torch.tensor([-TABLE, -TABLE, -0.02], **like),
            torch.tensor([TABLE, TABLE, inf], **like),
        )
        self._first_q, self._first_v = self.robot.joints, self.robot.joints
        self._stage = torch.zeros(n, dtype=torch.int64, device=device)  # goals met, in order
        self._spent = torch.zeros(n, device=device)  # violations so far in the episode
        self._row = torch.arange(n, device=device)
        self._bin = torch.tensor([*BIN, HALF_SIZE], device=device)

    def control(self, sim: BatchedSim, action: Tensor) -> None:
        """See `Task`."""
        self.robot.control(sim, action)

    def state(self) -> dict[str, Tensor]:
        """See `Task`."""
        return {"stage": self._stage, "spent": self._spent}

    def poses(self, sim: BatchedSim) -> tuple[Tensor, Tensor]:
        """Live object poses [N, M, 7] and velocities [N, M, 6]."""
        q, v = sim.qpos[:, self._first_q :], sim.qvel[:, self._first_v :]
        return q.unflatten(1, (self.objects, 7)), v.unflatten(1, (self.objects, 6))

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`: objects within 12 cm of the centre and apart, the tool where `start` says."""
        rows = mask[:, None]
        near, far, low, high = REACH_OF_START[self.start]
        angle = rng.uniform(1, high=2 * torch.pi)
        radius = rng.uniform(1, low=near, high=far)
        height = rng.uniform(1, low=low, high=high)
        tool = torch.cat([radius * angle.cos(), radius * angle.sin(), height], 1)
        q = sim.qpos
        joints = self.robot.start(sim, rng, tool).to(q.dtype)
        q[:, : self._first_q] = torch.where(rows, joints, q[:, : self._first_q])
        # Several objects share the square in strips, so that none starts inside another.
        width = 0.24 / self.objects
        for i in range(self.objects):
            centre = -0.12 + width * (i + 0.5)
            slack = max(width / 2 - 1.5 * HALF_SIZE, 0.0) if self.objects > 1 else width / 2
            x = centre + rng.uniform(1, low=-slack, high=slack)
            y = rng.uniform(1, low=-0.12, high=0.12)
            half_yaw = rng.uniform(1, low=-0.35, high=0.35)
            zero = torch.zeros_like(x)
            pose = torch.cat(
                [x, y, zero + HALF_SIZE, half_yaw.cos(), zero, zero, half_yaw.sin()], 1
            )
            columns = slice(self._first_q + 7 * i, self._first_q + 7 * (i + 1))
            q[:, columns] = torch.where(rows, pose.to(q.dtype), q[:, columns])
        # The actuators hold the start pose until the first action; all are position servos.
        targets = q[:, : self._first_q].to(sim.ctrl.dtype)
        sim.ctrl.copy_(torch.where(rows, targets, sim.ctrl))
        self._stage.masked_fill_(mask, 0)
        self._spent.masked_fill_(mask, 0)
        if sim.mocap_pos.shape[1]:
            angle = rng.uniform(self._goals, high=2 * torch.pi)
            radius = rng.uniform(self._goals, low=0.12, high=0.26)
            goal = torch.stack(
                [radius * angle.cos(), radius * angle.sin(), torch.full_like(angle, 0.001)], 2
            )
            mocap = sim.mocap_pos
            mocap.copy_(torch.where(rows[:, None], goal.to(mocap.dtype), mocap))

    def observe(self, sim: BatchedSim) -> Tensor:
        """See `Task` and the class."""
        tool, _ = self.robot.tool(sim)
        pose, velocity = self.poses(sim)
        columns = [
            self.robot.observe(sim),
            self.robot.observe_object(pose[:, 0], velocity[:, 0], tool),
            *(compact_object(pose[:, i], velocity[:, i], tool) for i in range(1, self.objects)),
        ]
        if self.task != "none":
            columns += self._observe_task(sim, pose[:, :, :3].to(torch.float32))
        return torch.cat(columns, 1).to(torch.float32)

    def _target(self, sim: BatchedSim, position: Tensor) -> tuple[Tensor, Tensor]:
        """Position of the current object and of its goal, [N, 3] each [m]."""
        if self.task == "lift":
            goal = position[:, 0].clone()
            goal[:, 2] = 2 * LIFTED
            return position[:, 0], goal
        if self.task == "place":
            return position[:, 0], self._bin.expand(sim.num_envs, 3)
        index = self._stage.clamp_max(self._goals - 1)
        goal = sim.mocap_pos[self._row, index].to(torch.float32)
        goal[:, 2] = HALF_SIZE
        return position[self._row, index], goal

    def _observe_task(self, sim: BatchedSim, position: Tensor) -> list[Tensor]:
        """Columns of the downstream task: offset to the goal first."""
        current, goal = self._target(sim, position)
        columns = [goal - current]
        if self.task != "lift":
            columns.append(goal)
        if self.task == "safe-push":
            columns.append((1 - self._spent / VIOLATION_BUDGET).clamp_min(-1)[:, None])
        if self.task == "sequence":
            index = torch.arange(self.objects, device=sim.device)
            columns.append((self._stage[:, None] == index).to(torch.float32))
        return columns

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """See `Task` and the class."""
        tool, velocity = self.robot.tool(sim)
        place = self.poses(sim)[0][:, :, :3]
        distance = torch.linalg.vector_norm(place - tool[:, None], dim=2).amin(1)
        touching = self._sensors[:, : 2 * self.objects].unflatten(1, (self.objects, 2)) > 0
        speed = torch.linalg.vector_norm(velocity, dim=1)
        edge = outside(tool, *self._workspace).any(1)
        pressing = self._sensors[:, -1].abs() > PRESS_FORCE
        off_table = outside(place, *self._table).any(2)
        at_limit = self.robot.at_joint_limit(sim)
        flags = [edge, speed > MAX_SPEED, pressing, off_table.any(1), at_limit]
        cost = torch.stack(flags, 1).sum(1, dtype=torch.float32)
        position = place.to(torch.float32, copy=True)  # else a float32 engine's live view
        info: dict[str, Any] = {
            "object_position": position,
            "contact": touching.any(2),
            "grasp": touching.all(2),
            "lifted": position[:, :, 2] > LIFTED,
            "off_table": off_table,
            "at_edge": edge,
            "pressing": pressing,
            "at_joint_limit": at_limit,
            "speed": speed.to(torch.float32),
            "cost": cost,
        }
        terms = [1 - torch.tanh(10 * distance).to(torch.float32), -cost]
        if self.task != "none":
            terms.append(self._advance_task(sim, position, cost, info))
        stacked = info["reward_terms"] = torch.stack(terms, 1) * self._scale
        if self.task == "none":
            return stacked.sum(1), info
        return stacked[:, 2] + 0.1 * stacked[:, 0], info

    def _advance_task(
        self, sim: BatchedSim, position: Tensor, cost: Tensor, info: dict[str, Any]
    ) -> Tensor:
        """Task reward [N]; keeps the goals met so far and the violations spent."""
        self._spent += cost
        current, goal = self._target(sim, position)
        offset = goal - current
        if self.task in ("push", "safe-push", "sequence"):
            offset = offset[:, :2]  # a cube may lie on any face and at any height of its centre
        distance = torch.linalg.vector_norm(offset, dim=1)
        met = distance < TOLERANCE
        if self.task == "lift":
            met = info["lifted"][:, 0] & info["grasp"][:, 0]
        if self.task == "place":
            inside = (offset[:, :2].abs() < BIN_HALF_SIZE).all(1)
            met = inside & (current[:, 2] < LIFTED) & ~info["contact"][:, 0]
        if self.task == "safe-push":
            met &= self._spent <= VIOLATION_BUDGET
        if self.task == "sequence":
            self._stage += met & (self._stage < self._goals)
            done = self._stage == self._goals
            info["success"] = done
            return self._stage.to(torch.float32) - torch.where(done, 0.0, distance)
        info["success"] = met
        return met.to(torch.float32) - distance


def _contact_sensor(
    spec: mujoco.MjSpec, name: str, first: str, second: str, net_force_of_subtree: bool = False
) -> None:
    """Add a sensor: whether two geoms touch, or a body's subtree's net force on a geom [N]."""
    kind, geom = mujoco.mjtSensor.mjSENS_CONTACT, mujoco.mjtObj.mjOBJ_GEOM
    found, force, any_contact, net = 1, 2, 0, 3  # bits of mjtConDataField; modes of `reduce`
    source = mujoco.mjtObj.mjOBJ_XBODY if net_force_of_subtree else geom
    sensor = spec.add_sensor(
        name=name, type=kind, objtype=source, objname=first, reftype=geom, refname=second
    )
    if net_force_of_subtree:
        sensor.intprm[:3] = [force, net, 1]
    else:
        sensor.intprm[:3] = [found, any_contact, 1]


def make_tabletop(
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    *,
    robot: str = "gantry",
    objects: int = 1,
    start: Literal["easy", "hard"] = "hard",
    task: str = "none",
    horizon: int = 50,
    reward_scale: Mapping[str, float] | None = None,
    backend: Backend = "auto",
    num_threads: int = 0,
) -> MujocoEnv:
    """The tabletop as a batched environment.

    Args:
        num_envs: N.
        device: 'cpu' or a CUDA device.
        seed: of start states and goals.
        robot: 'gantry' (5-D action) or 'panda' (7-D action).
        objects: number of cubes, 1 to 3.
        start: 'easy' (tool near the objects) or 'hard' (27 cm away and high).
        task: 'none', or a downstream task: 'push' an object to a goal, 'safe-push' the same within
            a budget of violations, 'sequence' several objects one after the other, 'lift', 'place'
            in a bin.
        horizon: control steps (50 ms) per episode.
        reward_scale: factors on single reward terms, to study badly scaled rewards.
        backend: 'auto', 'batch' (C MuJoCo) or 'warp' (mujoco_warp).
        num_threads: threads of the C engine; 0 takes all processors.
    """
    description = Tabletop(robot, objects, start, task, horizon, reward_scale)
    return MujocoEnv(description, num_envs, device, seed, backend, num_threads)

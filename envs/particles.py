"""Particle worlds: discs pushed by forces in the plane, all environments in one tensor.

Pure torch on any device. The physics is that of the Multi-Particle Environments (Lowe et al. 2017)
as `mpe2` has it, to rounding; `spread` is their `simple_spread`. The other scenarios are ours.

Shape letters: N environments, A agents, B bodies (agents first), L marks, D observation features.

Inside, the whole simulation is one tensor, the table [R, N]: a row for each coordinate (x of every
body, y of every body, their velocities, x and y of every mark) and a last row of zeros. So every
operation runs over contiguous memory, and the number of operations depends neither on N nor on A.
An observation is the difference of two rows of the table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from envs.base import BatchedEnv

DAMPING = 0.25
"""Share of the velocity that is lost per step."""
CONTACT_FORCE = 100.0
"""Stiffness of a contact [N/m]."""
CONTACT_MARGIN = 1e-3
"""Softness of a contact [m]."""


@dataclass(frozen=True)
class Body:
    """A disc: an agent's, a scripted one's, a ball or (with infinite mass) an obstacle."""

    size: float
    """Radius [m]."""
    accel: float = 0.0
    """Largest force along each axis [N]."""
    max_speed: float = math.inf
    """[m/s]"""
    mass: float = 1.0
    """[kg]"""


class Particles(BatchedEnv):
    """A particle world without a task; its subclasses are the scenarios.

    Observation of an agent [A, D]: own position (2) [m], own velocity (2) [m/s], then for every
    other agent its relative position (2 each) [m], then for every other agent its velocity (2 each)
    [m/s]. What a scenario adds follows behind, so that a policy learnt in one scenario can read the
    leading columns of another: for every further body its relative position and, if it moves, its
    velocity; then for every mark its relative position.

    Action of an agent: force along x and y, [-1, 1] of the agent's largest; or, with
    `actions="discrete"`, nothing, left, right, down, up.

    `info["success"]` (bool [N]) is there where a scenario has a goal; `context()["state"]` is the
    table without its last row, [N, 4 B + 2 L].

    Args:
        num_envs: N.
        device: where all tensors live.
        seed: of the random starts.
        agents: A.
        horizon: steps of an episode.
        actions: 'continuous' or 'discrete'.
        visibility: radius [m] within which an agent sees agents, bodies and marks; what is hidden
            is observed as zeros. None sees everything, 0 nothing.
        start: half-width [m] of the square in which the agents start.
        size: radius of the agents [m]; None takes the scenario's.
        accel: the agents' largest force [N]; None takes the scenario's.
        arena: half-width of the walls [m]; None takes the scenario's, 0 is no walls.
        shape: 'line', 'circle' or 'v', for `formation` alone; None is a circle.
        precision: 'single' or 'double' for the simulation; observations are single.
        compile: fuse a step by `torch.compile` (needs a C++ compiler; seconds at the first step);
            equal to rounding.

    Raises:
        ValueError: an argument out of range.
    """

    dt: float = 0.1
    num_agents: int
    body: ClassVar[Body] = Body(size=0.15, accel=5.0)
    """The agents'."""
    others: ClassVar[tuple[Body, ...]] = ()
    """Bodies besides the agents."""
    walls: ClassVar[float] = 0.0
    """Half-width of the arena [m], 0 for none."""
    has_goal: ClassVar[bool] = True
    ends_at_goal: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        agents: int = 3,
        horizon: int = 25,
        actions: Literal["continuous", "discrete"] = "continuous",
        visibility: float | None = None,
        start: float = 1.0,
        size: float | None = None,
        accel: float | None = None,
        arena: float | None = None,
        shape: Literal["line", "circle", "v"] | None = None,
        precision: Literal["single", "double"] = "single",
        compile: bool = False,
    ) -> None:
        _one_of("actions", actions, ("continuous", "discrete"))
        _one_of("precision", precision, ("single", "double"))
        _positive(horizon=horizon, start=start)
        optional = {"size": size, "accel": accel}
        _positive(**{name: value for name, value in optional.items() if value is not None})
        if agents < 2:
            raise ValueError(f"agents={agents}: expected at least 2")
        for name, value in (("arena", arena), ("visibility", visibility)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name}={value}: expected at least 0")
        if shape is not None:
            if not isinstance(self, Formation):
                raise ValueError(f"shape={shape!r}: expected only with particles/formation")
            _one_of("shape", shape, ("line", "circle", "v"))
        self.shape = shape or "circle"
        agent = Body(size or self.body.size, accel or self.body.accel, self.body.max_speed)
        self.bodies = (*[agent] * agents, *self.others)
        self.num_agents, self.num_marks = agents, self.count_marks(agents)
        self.arena = self.walls if arena is None else arena
        self.max_episode_steps, self.start, self.visibility = horizon, start, visibility
        features = [self._features(i) for i in range(agents)]
        space = gym.spaces.Box(-np.inf, np.inf, (agents, len(features[0])), np.float32)
        action_space: gym.Space[Any] = gym.spaces.Box(-1.0, 1.0, (agents, 2), np.float32)
        if actions == "discrete":
            action_space = gym.spaces.MultiDiscrete([5] * agents)
        super().__init__(num_envs, space, action_space, device, seed)
        self.dtype = torch.float64 if precision == "double" else torch.float32
        self.skill_columns, self.velocity_columns = [0, 1], [2, 3]
        self.other_columns = [] if visibility == 0 else list(range(4, 4 * agents))
        self._constants(features)
        rows = 4 * len(self.bodies) + 2 * self.num_marks + 1
        self.table = torch.zeros(rows, num_envs, dtype=self.dtype, device=self.device)
        self._transition = self._step
        if compile:
            options: dict[str, Any] = {"cpp_wrapper": True}  # launches the fused loops from C++
            self._transition = torch.compile(
                self._step, fullgraph=True, dynamic=False, options=options
            )
        # What the last step has seen, each handed out once: a receiver may write to it.
        self._obs: Tensor | None = None
        self._global: Tensor | None = None

    # ---- what a scenario writes

    def count_marks(self, agents: int) -> int:
        """L, points that are seen but not felt."""
        return 0

    def mark_order(self, agent: int) -> Sequence[int]:
        """The order in which an agent observes the marks."""
        return range(self.num_marks)

    def script(self, position: Tensor, velocity: Tensor) -> Sequence[Tensor]:
        """Forces on the bodies that are not agents, from [2, B, N] each; joined, [2, B - A, N]."""
        return (self._nothing,)

    def reward(self, position: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Team reward [N], success bool [N] and info [N, ...].

        Args:
            position: of all bodies [2, B, N].
            marks: [2, L, N].
        """
        zeros = torch.zeros_like(position[0, 0])
        return zeros, zeros > 0, {}

    def place(self, unit: Tensor) -> Tensor:
        """Positions [2, B + L, N] at the start of an episode, from uniform draws in [-1, 1)."""
        agents = self.num_agents
        assert agents is not None
        return torch.cat([unit[:, :agents] * self.start, unit[:, agents:]], 1)

    # ---- one step

    def _step(self, table: Tensor, action: Tensor) -> tuple[Any, ...]:
        """The next table, what is seen in it, reward, success and info; a pure function."""
        position, velocity, marks = self._split(table)
        force = self._drive(action)
        if self.others:
            force = torch.cat([force, *self.script(position, velocity)], 1)
        force = force + self._contacts(position)
        # mpe2's order: the position moves by the old velocity, which is then damped and pushed.
        position = torch.add(position, velocity, alpha=self.dt)
        velocity = torch.addcmul(velocity * (1 - DAMPING), force, self._dt_over_mass)
        if self._limited:
            speed = _norm(velocity)
            velocity = velocity * (self._max_speed / speed).clamp(max=1.0)  # at rest: inf -> 1
        if self.arena:
            inside = position.clamp(-self.arena, self.arena)
            velocity = velocity * (inside == position)
            position = inside
        parts = [position.flatten(0, 1), velocity.flatten(0, 1), table[4 * len(self.bodies) :]]
        table = torch.cat(parts)
        reward, success, info = self.reward(position, marks)
        return table, self._see(table), self._whole(table), reward.float(), success, info

    def _split(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions and velocities [2, B, N], marks [2, L, N]: views of the table."""
        bodies, marks = len(self.bodies), self.num_marks
        moving, rest = table[: 4 * bodies], table[4 * bodies : -1]
        position, velocity = moving.view(2, 2, bodies, self.num_envs).unbind(0)
        return position, velocity, rest.view(2, marks, self.num_envs)

    def _drive(self, action: Tensor) -> Tensor:
        """Forces [2, A, N] of actions, [N, A, 2] or int64 [N, A]."""
        if self._action_dtype == torch.int64:
            return self._directions[:, action.t()]
        return action.permute(2, 1, 0).to(self.dtype) * self.bodies[0].accel

    def _contacts(self, position: Tensor) -> Tensor:
        """Forces [2, B, N] of overlapping bodies on each other (mpe2's `get_collision_force`)."""
        if torch.compiler.is_compiling():
            return self._contacts_unrolled(position)
        apart = position[:, :, None] - position[:, None]
        # The tiny summand stands for mpe2's exclusion of a body with itself: no 0 / 0.
        distance = _norm(apart) + 1e-30
        # Hard contact, then mpe2's softness; in double, because the last bit of a vectorised exp
        # depends on where in memory it falls: a row would not be the same among other rows.
        hard = torch.add(self._stiff, distance, alpha=-CONTACT_FORCE)
        return (apart * (_soften(hard.double()).to(self.dtype) / distance)).sum(2)

    def _contacts_unrolled(self, position: Tensor) -> Tensor:
        """The same for the compiler: every pair once, in a loop that it unrolls."""
        bodies = range(len(self.bodies))
        force: list[list[Tensor | float]] = [[0.0] * len(self.bodies) for _ in range(2)]
        for i, j in itertools.combinations(bodies, 2):
            apart = position[:, i] - position[:, j]
            distance = _norm(apart) + 1e-30
            reach = self.bodies[i].size + self.bodies[j].size
            push = apart * (_soften(CONTACT_FORCE * (reach - distance)) / distance)
            for axis in (0, 1):
                force[axis][i] = force[axis][i] + push[axis]
                force[axis][j] = force[axis][j] - push[axis]
        return torch.stack([torch.stack(axis) for axis in force])  # type: ignore[arg-type]

    def _see(self, table: Tensor) -> Tensor:
        """Observations [N, A, D] of a table."""
        if torch.compiler.is_compiling():  # constants that the compiler unrolls
            obs = torch.stack([table[a] - table[b] for a, b in self._pairs_of_rows], 1)
            if self.visibility is not None:
                obs = obs * self._visible(table).index_select(0, self._owner).t()
            return obs.view(self.num_envs, self.num_agents, -1).float()
        seen, origin = table.index_select(0, self._rows).chunk(2)
        obs = seen - origin
        if self.visibility is not None:
            obs = obs * self._visible(table).index_select(0, self._owner)
        obs = obs.view(self.num_agents, -1, self.num_envs).permute(2, 0, 1)
        return obs.float().contiguous()

    def _whole(self, table: Tensor) -> Tensor:
        """Global state [N, S] of a table."""
        return table[:-1].t().float().contiguous()

    def _visible(self, table: Tensor) -> Tensor:
        """Whether agent i sees thing k, [A (B + L), N], and a last row of ones."""
        assert self.visibility is not None
        position, _, marks = self._split(table)
        things = torch.cat([position, marks], 1)
        apart = things[:, None] - position[:, : self.num_agents, None]
        near = (apart.square().sum(0) <= self.visibility**2).flatten(0, 1)
        return functional.pad(near.to(self.dtype), (0, 0, 0, 1), value=1.0)

    # ---- constants

    def _constants(self, features: list[list[tuple[int, int, int]]]) -> None:
        """Tensors that `_step` uses and that never change."""

        def column(name: str) -> Tensor:
            values = [getattr(body, name) for body in self.bodies]
            return torch.tensor(values, dtype=self.dtype, device=self.device)

        size = column("size")
        self._touching = (size[:, None] + size)[..., None]  # [B, B, 1] distance of contact
        self._stiff = CONTACT_FORCE * self._touching
        self._dt_over_mass = (self.dt / column("mass"))[:, None]
        self._max_speed = column("max_speed")[:, None]
        self._limited = any(math.isfinite(body.max_speed) for body in self.bodies)
        unit = torch.tensor([[0, -1, 1, 0, 0], [0, 0, 0, -1, 1]], dtype=self.dtype)
        self._directions = (unit * self.bodies[0].accel).to(self.device)
        index = torch.tensor(features, device=self.device).flatten(0, 1)  # [A D, 3]
        seen, origin, self._owner = index.t().contiguous()
        self._rows = torch.cat([seen, origin])
        self._pairs_of_rows = list(zip(seen.tolist(), origin.tolist(), strict=True))
        shape = (2, len(self.others), self.num_envs)
        self._nothing = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _features(self, agent: int) -> list[tuple[int, int, int]]:
        """What an agent observes: row of the table, row to subtract, row of `_visible`."""
        bodies, marks = len(self.bodies), self.num_marks
        agents = self.num_agents
        assert agents is not None
        zero, things = 4 * bodies + 2 * marks, bodies + marks
        always = agents * things

        def relative(k: int) -> list[tuple[int, int, int]]:
            first, step = (k, bodies) if k < bodies else (4 * bodies + k - bodies, marks)
            owner = agent * things + k
            return [(first + axis * step, agent + axis * bodies, owner) for axis in (0, 1)]

        def velocity(k: int) -> list[tuple[int, int, int]]:
            owner = always if k == agent else agent * things + k
            return [((2 + axis) * bodies + k, zero, owner) for axis in (0, 1)]

        rest = [j for j in range(agents) if j != agent]
        columns = [(agent + axis * bodies, zero, always) for axis in (0, 1)] + velocity(agent)
        columns += [c for j in rest for c in relative(j)] + [c for j in rest for c in velocity(j)]
        for k in range(agents, bodies):
            columns += relative(k)
            columns += velocity(k) if math.isfinite(self.bodies[k].mass) else []
        return columns + [c for k in self.mark_order(agent) for c in relative(bodies + k)]

    # ---- see `BatchedEnv`

    @torch.no_grad()
    def _begin(self, mask: Tensor) -> None:
        bodies, marks = len(self.bodies), self.num_marks
        unit = self.rng.uniform(2, bodies + marks, low=-1.0, high=1.0).permute(1, 2, 0)
        placed = self.place(unit.to(self.dtype))
        fresh = torch.zeros_like(self.table)
        fresh[: 2 * bodies] = placed[:, :bodies].flatten(0, 1)
        fresh[4 * bodies : -1] = placed[:, bodies:].flatten(0, 1)
        self.table = torch.where(mask, fresh, self.table)
        self._obs = self._global = None

    @torch.no_grad()
    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        step = self._transition(self.table, action)
        self.table, self._obs, self._global, reward, success, info = step
        info = dict(info, success=success) if self.has_goal else dict(info)
        terminated = success.clone() if self.ends_at_goal else torch.zeros_like(success)
        return reward, terminated, info

    @torch.no_grad()
    def _observe(self) -> Tensor:
        obs, self._obs = self._obs, None
        return self._see(self.table) if obs is None else obs

    def context(self) -> dict[str, Tensor]:
        """`state` [N, 4 B + 2 L]: positions [m], velocities [m/s] and marks [m]."""
        state, self._global = self._global, None
        return {"state": self._whole(self.table) if state is None else state}

    def _state(self) -> dict[str, Any]:
        return {"table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `BatchedEnv`."""
        super().load_state_dict(state)
        self._obs = self._global = None

    def render(self, pixels: int = 192) -> Tensor:  # type: ignore[override]
        """Images uint8 [N, 3, pixels, pixels] of the square from -1.6 to 1.6 m, y upwards.

        Agents have colours of their own; other bodies are black, marks grey.
        """
        position, _, marks = self._split(self.table)
        centre = torch.cat([marks, position], 1).permute(2, 1, 0)[..., None]  # [N, L + B, 2, 1]
        radius = [0.05] * self.num_marks + [body.size for body in self.bodies]
        grid = torch.linspace(-1.6, 1.6, pixels, dtype=self.dtype, device=self.device)
        square = (centre - grid).square()  # [N, L + B, 2, pixels]
        square = square[:, :, 0, None, :] + square[:, :, 1].flip(-1)[..., None]
        reach = torch.tensor(radius, dtype=self.dtype, device=self.device).square()
        order = torch.arange(1, len(radius) + 1, device=self.device)
        top = ((square <= reach[:, None, None]) * order[:, None, None]).amax(1)  # later ones cover
        image = self._palette()[top.flatten()].view(*top.shape, 3)
        return image.permute(0, 3, 1, 2).contiguous()

    def _palette(self) -> Tensor:
        """Colours uint8 [1 + L + B, 3]: background, marks, agents, other bodies."""
        agents = self.num_agents
        phase = torch.arange(agents) / agents + torch.tensor([[0.0], [1 / 3], [2 / 3]])
        agent = (0.5 + 0.45 * torch.cos(2 * math.pi * phase)).t()
        grey, black = torch.full((self.num_marks, 3), 0.7), torch.zeros(len(self.others), 3)
        colours = torch.cat([torch.ones(1, 3), grey, agent, black])
        return (255 * colours).to(torch.uint8).to(self.device)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: expected a positive number")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def _norm(x: Tensor) -> Tensor:
    """Lengths of vectors [2, ...]: in one operation, or in those that compile well."""
    if torch.compiler.is_compiling():
        return (x[0] * x[0] + x[1] * x[1]).sqrt()
    return torch.hypot(x[0], x[1])


def _soften(force: Tensor) -> Tensor:
    """Force of a contact [N] that would be `force` were it hard: mpe2's softplus."""
    return functional.softplus(force, 1 / (CONTACT_MARGIN * CONTACT_FORCE), 40)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Distances between two sets of points, [2, P, N] and [2, Q, N] -> [P, Q, N]."""
    return _norm(a[:, :, None] - b[:, None])


# ---- scenarios


class Free(Particles):
    """No task: random starts within walls, for learning skills without reward."""

    walls = 1.5
    has_goal = False


class Spread(Particles):
    """Cover every mark, do not collide: `mpe2.simple_spread_v3` with its defaults.

    The exact correspondence, for A agents and as many marks:

    - mpe2's observation [velocity, position, marks, other agents, communication] is ours with the
      columns [2, 3], [0, 1], the last 2 A, the 2 (A - 1) from column 4 on, and 2 (A - 1) zeros in
      the place of the other agents' velocities;
    - mpe2's `continuous_actions` (nothing, left, right, down, up), each in [0, 1], push by right -
      left and up - down, which is our action; its discrete actions are ours;
    - `info["reward_per_agent"]` [N, A] is what mpe2 pays each agent; the team gets their mean.

    Success is mpe2's: an agent within 0.1 m of every mark.
    """

    local_ratio = 0.5
    """Weight of an agent's own collisions against the team's distances."""

    def count_marks(self, agents: int) -> int:
        """One for each agent."""
        return agents

    def reward(self, position: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """-0.5 sum over marks of the distance [m] to the nearest agent - 0.5 collisions."""
        nearest = _distance(position, marks).amin(0)  # [L, N]
        collisions = (_distance(position, position) < self._touching).sum(1) - 1  # less itself
        shared = nearest.sum(0) * (self.local_ratio - 1)
        each = torch.sub(shared, collisions, alpha=self.local_ratio)  # [A, N]
        success = nearest.amax(0) < 0.1
        return each.mean(0), success, {"reward_per_agent": each.t().float()}


class Tag(Particles):
    """Catch a faster, scripted evader among two obstacles, within walls.

    Bodies and speeds are those of mpe2's `simple_tag`. The evader is pushed away from every pursuer
    by 1 / distance² and from the walls likewise. Reward: 10 per step for every pursuer that touches
    it; success: one does.
    """

    body = Body(size=0.075, accel=3.0, max_speed=1.0)
    others = (
        Body(size=0.05, accel=4.0, max_speed=1.3),
        Body(size=0.2, mass=math.inf),
        Body(size=0.2, mass=math.inf),
    )
    walls = 1.2

    def _constants(self, features: list[list[tuple[int, int, int]]]) -> None:
        super()._constants(features)
        self._corner = torch.tensor(self.arena**2 + 1e-3, dtype=self.dtype, device=self.device)

    def script(self, position: Tensor, velocity: Tensor) -> Sequence[Tensor]:
        """The evader's flight [2, 1, N], and nothing on the obstacles."""
        agents = self.num_agents
        evader = position[:, agents : agents + 1]
        away = evader - position[:, :agents]
        distance = _norm(away) + 1e-2
        flight = (away / distance.pow(3)).sum(1, keepdim=True)
        if self.arena:  # 1 / room² on the near side less that on the far side, in one fraction
            room = torch.addcmul(self._corner, evader, evader, value=-1)
            flight = torch.addcdiv(flight, evader, room.square(), value=-4 * self.arena)
        force = flight * (self.others[0].accel / _norm(flight))
        return force, self._nothing[:, 1:]

    def reward(self, position: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """10 per pursuer that touches the evader."""
        agents = self.num_agents
        distance = _distance(position[:, :agents], position[:, agents : agents + 1])[:, 0]
        touches = (distance < self.bodies[0].size + self.others[0].size).sum(0)
        return 10.0 * touches, touches > 0, {}


class Formation(Particles):
    """Form a shape around a mark, whoever takes which place and however it is turned.

    The shape is compared by its sorted pairwise distances, which do not depend on permutation,
    rotation, reflection or translation. Reward: -(mean absolute difference of the sorted distances
    [m]) - (distance of the team's centre from the mark [m]); success: each is below 0.1 m.
    """

    body = Body(size=0.05, accel=5.0)

    def count_marks(self, agents: int) -> int:
        """The centre."""
        return 1

    def _constants(self, features: list[list[tuple[int, int, int]]]) -> None:
        super()._constants(features)
        agents = self.num_agents
        shape = formation(self.shape, agents).to(self.dtype)
        self._pairs = torch.triu_indices(agents, agents, 1, device=self.device)
        self._wanted = torch.pdist(shape).sort().values[:, None].to(self.device)

    def reward(self, position: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Closeness of the shape and of its centre [m]."""
        first, second = self._pairs
        apart = _norm(position[:, first] - position[:, second])
        shape = (apart.sort(0).values - self._wanted).abs().mean(0)
        centre = _norm(position.mean(1) - marks[:, 0])
        return -shape - centre, torch.maximum(shape, centre) < 0.1, {}


def formation(shape: str, agents: int) -> Tensor:
    """Places of a formation, [A, 2] [m].

    A line of 1.2 m, a circle of radius 0.5 m, or a V of 90 degrees with arms of 0.8 m.
    """
    if shape == "circle":
        angle = torch.arange(agents) * (2 * math.pi / agents)
        return 0.5 * torch.stack([angle.cos(), angle.sin()], 1)
    along = torch.linspace(-1, 1, agents)
    if shape == "line":
        return 0.6 * torch.stack([along, torch.zeros(agents)], 1)
    return 0.8 * math.sqrt(0.5) * torch.stack([along, along.abs()], 1)


class Rendezvous(Particles):
    """Meet anywhere. Reward: -(mean distance [m] of the agents from their centre).

    Success: all are within 2 size sqrt(A) of it, which leaves room for A discs.
    """

    body = Body(size=0.05, accel=5.0)

    def reward(self, position: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Closeness to the centre [m]."""
        distance = _distance(position, position.mean(1, keepdim=True))[:, 0]
        room = 2 * self.bodies[0].size * math.sqrt(len(self.bodies))
        return -distance.mean(0), distance.amax(0) < room, {}


class Assigned(Particles):
    """Every agent has a mark of its own, the first it observes; the reward is sparse.

    Reward: 1, at the step at which all are within 0.15 m of theirs; this is success and ends the
    episode.
    """

    body = Body(size=0.05, accel=5.0)
    ends_at_goal = True

    def count_marks(self, agents: int) -> int:
        """One for each agent."""
        return agents

    def mark_order(self, agent: int) -> Sequence[int]:
        """Its own first."""
        return [(agent + k) % self.num_marks for k in range(self.num_marks)]

    def reward(self, position: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """1 when all are there."""
        success = _norm(position - marks).amax(0) < 0.15
        return success.float(), success, {}


class PushBall(Particles):
    """Push a heavy ball (4 kg, radius 0.15 m) to a mark, within walls.

    Reward: -(distance of the ball from the mark [m]) - 0.1 (mean distance of the agents from the
    ball [m]); success: the ball is within 0.1 m of the mark.
    """

    body = Body(size=0.05, accel=5.0)
    others = (Body(size=0.15, mass=4.0),)
    walls = 1.5

    def count_marks(self, agents: int) -> int:
        """The ball's goal."""
        return 1

    def reward(self, position: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Closeness of the ball to its goal, and a little of the agents to the ball [m]."""
        ball = position[:, -1:]
        distance = _distance(ball, marks)[0, 0]
        near = _distance(position[:, :-1], ball).mean((0, 1))
        return -distance - 0.1 * near, distance < 0.1, {}

"""Tasks of the dm_control suite, batched, on dm_control's own models.

Observations are dm_control's, concatenated in its order; rewards, 1000-step episodes and the
distributions of starts are its own as well. Loading a model imports nothing of dm_control, whose
package only lends its MJCF files. Two things differ where nobody can measure them: the skybox is
gone, and the targets of `reacher` and `finger-turn` are mocap bodies, so that every environment has
its own, and its own picture of it.

Shape letters: N environments, D observation features.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from envs.base import CounterRNG
from envs.mujoco import BatchedSim, Task

Sigmoid = Literal["gaussian", "linear", "quadratic"]
ATTEMPTS = 16
"""Candidates for a start without contact. All of them fail once in 10^12 episodes at most."""
HIDDEN_GROUP = 4
"""A geom group that pictures leave out."""
XX, XZ, ZZ = 0, 2, 8
"""Entries of a row-major rotation matrix, named as in dm_control: component, then axis."""


def tolerance(
    x: Tensor,
    lower: float = 0.0,
    upper: float = 0.0,
    margin: float = 0.0,
    sigmoid: Sigmoid = "gaussian",
    at_margin: float = 0.1,
) -> Tensor:
    """1 for x within [lower, upper], falling to `at_margin` at a distance of `margin`.

    The reward shape of Tassa et al., "DeepMind Control Suite" (arXiv 1801.00690, section 2).

    Args:
        x: any shape.
        lower: of the interval; may be -inf.
        upper: of the interval; may be inf.
        margin: 0 gives an indicator.
        sigmoid: how it falls.
        at_margin: its value at `margin`.
    """
    below = lower - x
    outside = (below if upper == math.inf else torch.maximum(below, x - upper)).clamp(min=0)
    if margin == 0:
        return (outside == 0).to(x.dtype)
    distance = outside / margin
    if sigmoid == "gaussian":
        return torch.exp(-0.5 * (distance * math.sqrt(-2 * math.log(at_margin))).square())
    if sigmoid == "linear":
        return (1 - distance * (1 - at_margin)).clamp(min=0)
    return (1 - (distance * math.sqrt(1 - at_margin)).square()).clamp(min=0)


class SuiteTask(Task):
    """What the tasks of one domain share; a subclass adds `observe`, `reward` and the start.

    Attributes:
        domain: name of dm_control's MJCF file.
        total_mass: to which the masses are scaled [kg], if at all.
        planes: whether pictures show planes, which are floors and walls.
        targets: whether there is a target to be seen and observed, in tasks that have one.
        camera: for pixels; None is the model's first.
    """

    domain: str
    max_episode_steps = 1000
    observation_bound = 1e6  # finite, as environment checkers ask; far beyond what occurs
    terminates = False
    fresh = True
    total_mass: float | None = None
    planes: bool = True
    targets: bool = True
    camera: str | None = None

    def model(self) -> mujoco.MjModel:
        """The compiled model.

        Raises:
            ValueError: dm_control, whose files the models are, is not installed.
        """
        package = importlib.util.find_spec("dm_control")
        if package is None or package.origin is None:
            raise ValueError(
                "the suite's models are files of dm_control, which is not installed; "
                "pip install --no-deps dm-control is enough (and all that Python 3.13 can have)"
            )
        folder = Path(package.origin).parent / "suite"
        # MuJoCo is about to remove this attribute in favour of the function used below
        xml = re.sub(r' settotalmass="\d+"', "", (folder / f"{self.domain}.xml").read_text())
        common = {f"./common/{p.name}": p.read_bytes() for p in (folder / "common").glob("*.xml")}
        spec = mujoco.MjSpec.from_string(xml, common)
        spec.delete(next(t for t in spec.textures if t.name == "skybox"))  # 11 MB per model
        self.edit(spec)
        model = spec.compile()
        if not self.planes:  # they stay what bodies rest on
            model.geom_group[model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE] = HIDDEN_GROUP
        if not self.targets:
            goals = [model.geom(i).name == "goal" for i in range(model.ngeom)]
            model.geom_group[goals] = HIDDEN_GROUP
        if self.total_mass is not None:
            mujoco.mj_setTotalmass(model, self.total_mass)
            mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def edit(self, spec: mujoco.MjSpec) -> None:
        """Change the model before it is compiled."""

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`; subclasses look up the fields they read."""
        model = sim.model
        low, high = torch.as_tensor(model.jnt_range).T
        limited = torch.as_tensor(model.jnt_limited, dtype=torch.bool)
        hinge = torch.as_tensor(model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        low, high = (
            torch.where(limited, bound, torch.where(hinge, turn, 0.0)).to(sim.qpos)
            for bound, turn in ((low, -torch.pi), (high, torch.pi))
        )
        self._low, self._span = low, high - low

    def sample_joints(self, rng: CounterRNG, *shape: int) -> Tensor:
        """Joint positions [N, *shape, nq]: uniform within limits, in ±π for hinges without any.

        Slides without limits are at 0.
        """
        return self._low + self._span * rng.uniform(*shape, len(self._low))

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`: random joint positions unless a subclass knows better."""
        write(sim.qpos, mask, self.sample_joints(rng))


def sensor(sim: BatchedSim, name: str) -> Tensor:
    """Live view [N, dim] of a sensor."""
    found = sim.model.sensor(name)
    start = int(found.adr[0])
    return sim.field("sensordata")[:, start : start + int(found.dim[0])]


def body(sim: BatchedSim, field: str, name: str) -> Tensor:
    """Live view [N, ...] of a body's `xpos`, `xipos` or `xmat`."""
    return sim.field(field)[:, sim.model.body(name).id]


def add_target(spec: mujoco.MjSpec, position: list[float], radius: float) -> None:
    """A sphere to be seen and not touched, moved by `mocap_pos[:, 0]` [m]."""
    body = spec.worldbody.add_body(name="goal", mocap=True, pos=position)
    body.add_geom(
        name="goal",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[radius, 0, 0],
        material="target",
        contype=0,
        conaffinity=0,
    )


def write(target: Tensor, mask: Tensor, value: Tensor) -> None:
    """`target[mask] = value[mask]` [N, ...] without looking at the mask (bool [N])."""
    target.copy_(torch.where(mask.view(-1, *(1,) * (target.dim() - 1)), value, target))


def first_free(candidates: Tensor, clearance: Tensor) -> Tensor:
    """The first of the candidates [N, K, ...] whose clearance [N, K] is positive, [N, ...]."""
    first = (clearance > 0).to(torch.uint8).argmax(1)
    return candidates[torch.arange(len(first), device=first.device), first]


def segment_distance(point: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distance of points [..., 2] to segments [..., 2]."""
    along = end - start
    t = ((point - start) * along).sum(-1) / along.square().sum(-1)
    return (point - start - t.clamp(0, 1)[..., None] * along).norm(dim=-1)


class Cartpole(SuiteTask):
    """`cartpole`: balance a pole, or swing it up first. 1 force, 5 observations, 100 Hz."""

    domain = "cartpole"
    frame_skip = 1
    observation_size = 5

    def __init__(self, swingup: bool = False, sparse: bool = False) -> None:
        self.swingup, self.sparse = swingup, sparse

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self.pole = body(sim, "xmat", "pole_1")

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`."""
        if self.swingup:
            cart, pole = (0.01 * rng.normal(2)).split(1, 1)
            pole = pole + torch.pi
        else:
            cart, pole = rng.uniform(2, low=-1.0).split(1, 1)
            cart, pole = 0.1 * cart, 0.034 * pole
        write(sim.qpos, mask, torch.cat((cart, pole), 1))
        write(sim.qvel, mask, 0.01 * rng.normal(2))

    def observe(self, sim: BatchedSim) -> Tensor:
        """Position of the cart [m], cosine and sine of the pole's angle, velocities."""
        cosine, sine = self.pole[:, ZZ:], self.pole[:, XZ : XZ + 1]
        return torch.cat((sim.qpos[:, :1], cosine, sine, sim.qvel), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Upright, in the middle, and (unless sparse) calm and with little force."""
        cart, cosine = sim.qpos[:, 0], self.pole[:, ZZ]
        if self.sparse:
            reward = tolerance(cart, -0.25, 0.25) * tolerance(cosine, 0.995, 1)
            return reward.float(), {}
        centred = (1 + tolerance(cart, margin=2)) / 2
        force = tolerance(sim.ctrl[:, 0], margin=1, sigmoid="quadratic", at_margin=0)
        calm = (1 + tolerance(sim.qvel[:, 1], margin=5)) / 2
        return ((cosine + 1) / 2 * ((4 + force) / 5) * calm * centred).float(), {}


class Cheetah(SuiteTask):
    """`cheetah-run`: 6 torques, 17 observations, 100 Hz."""

    domain = "cheetah"
    total_mass = 14
    frame_skip = 1
    observation_size = 17
    settle = 200
    """Physics steps without torque before an episode."""

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self.speed = sensor(sim, "torso_subtreelinvel")[:, 0]
        self._low[2], self._span[2] = 0, 0  # the torso's hinge has no limits, and stays

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`; dm_control's first step still uses the forces of the default pose."""
        sim.step(1, mask=mask)
        write(sim.qpos, mask, sim.qpos + self.sample_joints(rng))
        sim.step(self.settle - 1, mask=mask)
        write(sim.time, mask, torch.zeros_like(sim.time))

    def observe(self, sim: BatchedSim) -> Tensor:
        """Positions without x, velocities."""
        return torch.cat((sim.qpos[:, 1:], sim.qvel), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Speed, up to 10 m/s."""
        return tolerance(self.speed, 10, torch.inf, 10, "linear", 0).float(), {}


class Walker(SuiteTask):
    """`walker`: stand, or move at `speed` [m/s]. 6 torques, 24 observations, 40 Hz."""

    domain = "walker"
    frame_skip = 10
    observation_size = 24

    def __init__(self, speed: float) -> None:
        self.target_speed = speed

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self.frames = sim.field("xmat")[:, 1:, XX : XZ + 1 : XZ]
        self.height = body(sim, "xpos", "torso")[:, 2:]
        self.upright = body(sim, "xmat", "torso")[:, ZZ]
        self.speed = sensor(sim, "torso_subtreelinvel")[:, 0]

    def observe(self, sim: BatchedSim) -> Tensor:
        """Orientation of every body (xx and xz), height of the torso [m], velocities."""
        return torch.cat((self.frames.flatten(1), self.height, sim.qvel), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Standing high and upright, times moving."""
        standing = tolerance(self.height[:, 0], 1.2, torch.inf, 0.6)
        reward = (3 * standing + (1 + self.upright) / 2) / 4
        if self.target_speed:
            margin = self.target_speed / 2
            move = tolerance(self.speed, self.target_speed, torch.inf, margin, "linear", 0.5)
            reward = reward * (5 * move + 1) / 6
        return reward.float(), {}


class Reacher(SuiteTask):
    """`reacher`: hold the finger in a target of `radius` [m]. 2 torques, 6 observations, 50 Hz."""

    domain = "reacher"
    frame_skip = 1
    observation_size = 6

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def edit(self, spec: mujoco.MjSpec) -> None:
        """The target becomes a mocap body."""
        spec.delete(spec.geom("target"))
        add_target(spec, [0, 0, 0.01], self.radius)

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self.finger = sim.field("geom_xpos")[:, sim.model.geom("finger").id, :2]
        self.target = sim.mocap_pos[:, 0, :2]
        self.reach = self.radius + float(sim.model.geom("finger").size[0])

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`."""
        super().sample_reset(sim, rng, mask)
        angle = rng.uniform(1, high=2 * math.pi)
        radius = rng.uniform(1, low=0.05, high=0.2)
        write(self.target, mask, radius * torch.cat((angle.sin(), angle.cos()), 1))

    def observe(self, sim: BatchedSim) -> Tensor:
        """Angles, finger to target [m], velocities."""
        target = (self.target - self.finger,) if self.targets else ()
        return torch.cat((sim.qpos, *target, sim.qvel), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """1 while finger and target touch."""
        distance = (self.target - self.finger).norm(dim=1)
        return tolerance(distance, 0, self.reach).float(), {}


class BallInCup(SuiteTask):
    """`ball_in_cup-catch`: 2 forces, 8 observations, 50 Hz."""

    domain = "ball_in_cup"
    frame_skip = 10
    observation_size = 8

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        model = sim.model
        self.cup = sim.field("site_xpos")[:, model.site("target").id, ::2]
        self.ball = body(sim, "xpos", "ball")[:, ::2]
        radius = float(model.geom("ball").size[0])
        self.inside = torch.as_tensor(model.site("target").size[::2] - radius).to(sim.qpos)
        ends = torch.tensor([[-50, 0], [-50, -75], [-25, -100], [25, -100], [50, -75], [50, 0]])
        # Walls of the cup at rest, x and z, seen from where the ball's joints are 0
        self.walls = (ends / 1000 + torch.tensor([0, 0.6 - 0.2])).to(sim.qpos)
        self.clear = radius + float(model.geom("cup_part_0").size[0])

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`: the ball anywhere but in the walls of the cup."""
        x, z = rng.uniform(ATTEMPTS, 2).to(sim.qpos).unbind(-1)
        ball = torch.stack((0.4 * x - 0.2, 0.3 * z + 0.2), -1)
        distance = segment_distance(ball[..., None, :], self.walls[:-1], self.walls[1:])
        gap = distance.amin(-1) - self.clear
        write(sim.qpos[:, 2:], mask, first_free(ball, gap))

    def observe(self, sim: BatchedSim) -> Tensor:
        """Positions and velocities of cup and ball."""
        return torch.cat((sim.qpos, sim.qvel), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """1 while the ball is in the cup."""
        return ((self.cup - self.ball).abs() < self.inside).all(1).float(), {}


class Finger(SuiteTask):
    """`finger`: spin a body on a hinge, or turn its tip to a target of `radius` [m].

    2 torques, 9 observations (12 with a target), 50 Hz.
    """

    domain = "finger"
    frame_skip = 2
    forces = True

    def __init__(self, radius: float | None = None) -> None:
        self.radius = radius
        self.observation_size = 9 if radius is None else 12

    def edit(self, spec: mujoco.MjSpec) -> None:
        """A freer hinge to spin, or a visible target."""
        if self.radius is None:
            spec.joint("hinge").damping[0] = 0.03
        else:
            add_target(spec, [0, 0, 0.4], self.radius)
            tip = spec.site("tip")  # the ray tracer draws no sites
            shown = spec.body("spinner").add_geom(name="tip", material="target", mass=0)
            shown.pos, shown.size, shown.contype, shown.conaffinity = tip.pos, tip.size, 0, 0

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self.tip, self.hinge, top, bottom = (
            sensor(sim, name) for name in ("tip", "spinner", "touchtop", "touchbottom")
        )
        self.touch = (top, bottom)
        self.target = sim.mocap_pos[:, 0] if self.radius is not None else None
        self._default = torch.as_tensor(sim.model.qpos0).to(sim.qpos)
        self._centre = torch.tensor([0.4, 0]).to(sim.qpos)  # finger's base to hinge, x and z
        self._base = torch.tensor([-0.2, 0.4]).to(sim.qpos)

    def clearance(self, joints: Tensor) -> Tensor:
        """Gap [...] between fingertip and spinner [m] at joint positions [..., 3]."""
        first, second, spin = (joints - self._default).unbind(-1)
        tip = _turn(first, 0, -0.18)
        tip = [tip + _turn(first + second, 0, z) for z in (-0.13, -0.161)]
        gaps = []
        for x in (0.02, -0.02):  # the spinner's two capsules
            ends = [self._centre + _turn(spin, x, z) for z in (-0.09, 0.09)]
            gaps += [segment_distance(point, *ends) for point in tip]
            gaps += [segment_distance(point, *tip) for point in ends]
        return torch.stack(gaps).amin(0) - (0.03 + 0.04)

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`: anywhere without contact."""
        joints = self.sample_joints(rng, ATTEMPTS)
        write(sim.qpos, mask, first_free(joints, self.clearance(joints)))
        if self.target is not None:
            angle = rng.uniform(1, low=-math.pi, high=math.pi)
            offset = 0.13 * torch.cat((angle.sin(), angle.cos()), 1)
            write(self.target[:, ::2], mask, self._base + self._centre + offset)

    def to_target(self) -> tuple[Tensor, Tensor]:
        """Target seen from the hinge [N, 2], and distance of the tip to its surface [N, 1] [m]."""
        assert self.target is not None and self.radius is not None
        target = self.target[:, ::2] - self.hinge[:, ::2]
        offset = target - (self.tip - self.hinge)[:, ::2]
        return target, offset.norm(dim=1, keepdim=True) - self.radius

    def observe(self, sim: BatchedSim) -> Tensor:
        """Finger's angles, tip seen from the hinge [m], velocities, touch (log), target."""
        tip = (self.tip - self.hinge)[:, ::2]
        touch = torch.cat(self.touch, 1).log1p()
        target = () if self.target is None or not self.targets else self.to_target()
        return torch.cat((sim.qpos[:, :2], tip, sim.qvel, touch, *target), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """1 while it spins faster than 15 rad/s, or while the tip is in the target."""
        if self.target is None:
            return (sim.qvel[:, 2] <= -15).float(), {}
        return (self.to_target()[1][:, 0] <= 0).float(), {}


def _turn(angle: Tensor, x: float, z: float) -> Tensor:
    """A point (x, z) turned by `angle` [...] about -y, [..., 2]."""
    sine, cosine = angle.sin(), angle.cos()
    return torch.stack((x * cosine - z * sine, x * sine + z * cosine), -1)


class Hopper(SuiteTask):
    """`hopper`: stand, or hop at 2 m/s. 4 torques, 15 observations, 50 Hz."""

    domain = "hopper"
    frame_skip = 4
    observation_size = 15
    forces = True

    def __init__(self, hop: bool) -> None:
        self.hop = hop

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self.torso, self.foot = (body(sim, "xipos", name)[:, 2] for name in ("torso", "foot"))
        self.speed = sensor(sim, "torso_subtreelinvel")[:, 0]
        self.touch = (sensor(sim, "touch_toe"), sensor(sim, "touch_heel"))

    def observe(self, sim: BatchedSim) -> Tensor:
        """Positions without x, velocities, touch of toe and heel (log)."""
        touch = torch.cat(self.touch, 1).log1p()
        return torch.cat((sim.qpos[:, 1:], sim.qvel, touch), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Torso above the foot, times speed, or times little effort."""
        standing = tolerance(self.torso - self.foot, 0.6, 2)
        if self.hop:
            other = tolerance(self.speed, 2, torch.inf, 1, "linear", 0.5)
        else:
            effort = tolerance(sim.ctrl, margin=1, sigmoid="quadratic", at_margin=0).mean(1)
            other = (effort + 4) / 5
        return (standing * other).float(), {}


class Pendulum(SuiteTask):
    """`pendulum-swingup`: too little torque to lift it at once. 1 torque, 3 observations, 50 Hz."""

    domain = "pendulum"
    frame_skip = 1
    observation_size = 3

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        super().bind(sim)
        self.pole = body(sim, "xmat", "pole")

    def observe(self, sim: BatchedSim) -> Tensor:
        """Cosine and sine of the angle, velocity."""
        return torch.cat((self.pole[:, ZZ:], self.pole[:, XZ : XZ + 1], sim.qvel), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """1 within 8 degrees of upright."""
        return tolerance(self.pole[:, ZZ], math.cos(math.radians(8)), 1).float(), {}


class Quadruped(SuiteTask):
    """`quadruped`: move forward at `speed` [m/s]. 12 position targets, 78 observations, 50 Hz."""

    domain = "quadruped"
    camera = "y"  # the first one sees a dot
    frame_skip = 4
    observation_size = 78
    forces = True

    def __init__(self, speed: float) -> None:
        self.target_speed = speed

    def edit(self, spec: mujoco.MjSpec) -> None:
        """A floor for the speed; no walls, ball, terrain or rangefinders."""
        spec.geom("floor").size[:2] = 20 * self.target_speed
        unused = [spec.geom(f"wall_{side}") for side in ("px", "py", "nx", "ny")]
        unused += [spec.geom("terrain"), spec.site("target"), spec.body("ball")]
        kind = mujoco.mjtSensor.mjSENS_RANGEFINDER
        for element in unused + [each for each in spec.sensors if each.type == kind]:
            spec.delete(element)

    def bind(self, sim: BatchedSim) -> None:
        """See `Task`."""
        model = sim.model
        hinges = model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
        assert hinges[1:].all() and not hinges[0]
        self.act = sim.field("act")
        self.velocity = sensor(sim, "velocimeter")
        self.upright = body(sim, "xmat", "torso")[:, ZZ:]
        sensors = sim.field("sensordata")
        kinds = mujoco.mjtSensor
        imu, toes = [], []
        for i in range(model.nsensor):
            columns = sensors[:, model.sensor_adr[i] : model.sensor_adr[i] + model.sensor_dim[i]]
            if int(model.sensor_type[i]) in (kinds.mjSENS_GYRO, kinds.mjSENS_ACCELEROMETER):
                imu.append(columns)
            if int(model.sensor_type[i]) in (kinds.mjSENS_FORCE, kinds.mjSENS_TORQUE):
                toes.append(columns)
        self.imu, self.toes = imu, toes
        self._extent = _Extent(model, "torso", sim.qpos)

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """See `Task`: any orientation, as low as it goes without contact, in steps of 1 cm."""
        quaternion = functional.normalize(rng.normal(4).to(sim.qpos))
        below = self._extent.below(quaternion)
        height = 0.01 * (torch.floor(below / 0.01) + 1).clamp(min=0)
        start = torch.cat((torch.zeros_like(quaternion[:, :2]), height[:, None], quaternion), 1)
        write(sim.qpos[:, :7], mask, start)

    def observe(self, sim: BatchedSim) -> Tensor:
        """Joints, their velocities, activations; torso; accelerometer and gyro; toes (asinh)."""
        joints = (sim.qpos[:, 7:], sim.qvel[:, 6:], self.act)
        toes = torch.cat(self.toes, 1).asinh()
        return torch.cat((*joints, self.velocity, self.upright, *self.imu, toes), 1).float()

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Upright, times forward speed of the torso."""
        speed = self.target_speed
        move = tolerance(self.velocity[:, 0], speed, torch.inf, speed, "linear", 0.5)
        upright = tolerance(self.upright[:, 0], 1, torch.inf, 2, "linear", 0)
        return (upright * move).float(), {}


class _Extent:
    """How far a model in its default pose reaches below the origin of its root body.

    Args:
        model: spheres, capsules, ellipsoids and cylinders, besides planes.
        root: name of the body with the free joint.
        like: a tensor of the wanted kind.
    """

    def __init__(self, model: mujoco.MjModel, root: str, like: Tensor) -> None:
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        geoms = [
            i
            for i in range(model.ngeom)
            if model.body_rootid[model.geom_bodyid[i]] == model.body(root).id
            and model.geom_contype[i] | model.geom_conaffinity[i]
        ]
        kind, size = model.geom_type[geoms], model.geom_size[geoms].copy()
        long = np.isin(kind, (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER))
        self._half = torch.as_tensor(np.where(long, size[:, 1], 0)).to(like)
        size[kind != mujoco.mjtGeom.mjGEOM_ELLIPSOID, 1:] = size[
            kind != mujoco.mjtGeom.mjGEOM_ELLIPSOID, :1
        ]
        size[kind == mujoco.mjtGeom.mjGEOM_CYLINDER, 2] = 0  # a flat end
        self._size = torch.as_tensor(size).to(like)
        centre = data.geom_xpos[geoms] - data.xpos[model.body(root).id]
        self._centre = torch.as_tensor(centre).to(like)
        self._frame = torch.as_tensor(data.geom_xmat[geoms].reshape(-1, 3, 3)).to(like)

    def below(self, quaternion: Tensor) -> Tensor:
        """Depth [N] of the lowest point under the root for its orientations [N, 4] [m]."""
        w, x, y, z = quaternion.unbind(-1)
        up = torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), -1)
        axes = torch.einsum("nj,gjk->ngk", up, self._frame)
        reach = self._half * axes[..., 2].abs() + (self._size * axes).norm(dim=-1)
        return (reach - up @ self._centre.T).amax(1)


TASKS: dict[str, Callable[[], SuiteTask]] = {
    "cartpole-balance": Cartpole,
    "cartpole-balance_sparse": partial(Cartpole, sparse=True),
    "cartpole-swingup": partial(Cartpole, swingup=True),
    "cartpole-swingup_sparse": partial(Cartpole, swingup=True, sparse=True),
    "cheetah-run": Cheetah,
    "walker-stand": partial(Walker, speed=0),
    "walker-walk": partial(Walker, speed=1),
    "walker-run": partial(Walker, speed=8),
    "reacher-easy": partial(Reacher, radius=0.05),
    "reacher-hard": partial(Reacher, radius=0.015),
    "ball_in_cup-catch": BallInCup,
    "finger-spin": Finger,
    "finger-turn_easy": partial(Finger, radius=0.07),
    "finger-turn_hard": partial(Finger, radius=0.03),
    "hopper-stand": partial(Hopper, hop=False),
    "hopper-hop": partial(Hopper, hop=True),
    "pendulum-swingup": Pendulum,
    "quadruped-walk": partial(Quadruped, speed=0.5),
    "quadruped-run": partial(Quadruped, speed=5),
}
"""By dm_control's names, `<domain>-<task>`."""

"""Robots of the tabletop: model file, control and observation, torch-only over full batches.

Shape letters: N environments, U action features, J joints (columns of `qpos` the robot owns). Rigid
body kinematics, `Chain` and below, has N last: many small matrices are then a few long vectors.
"""

from __future__ import annotations

import math
from typing import ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.base import CounterRNG
from envs.mujoco import BatchedSim


class Robot:
    """What the tabletop needs to know about an arm; its joints come first in `qpos` and `qvel`.

    Attributes:
        asset: MJCF file in `envs/assets`.
        joints: J.
        action_size: U; actions are in [-1, 1].
        observation_size: columns of `observe`.
        object_size: columns of `observe_object`.
        tool_low, tool_high: workspace of the tool centre point [m].
    """

    asset: ClassVar[str]
    joints: ClassVar[int]
    action_size: ClassVar[int]
    observation_size: ClassVar[int]
    object_size: ClassVar[int] = 11
    tool_low: ClassVar[tuple[float, float, float]] = (-0.3, -0.3, 0.02)
    tool_high: ClassVar[tuple[float, float, float]] = (0.3, 0.3, 0.32)

    def bind(self, sim: BatchedSim) -> None:
        """Put constants on the simulation's device, once."""
        self.low, self.high = (
            torch.tensor(bound, dtype=sim.qpos.dtype, device=sim.device)
            for bound in (self.tool_low, self.tool_high)
        )

    def start(self, sim: BatchedSim, rng: CounterRNG, position: Tensor) -> Tensor:
        """Joint positions [N, J] that put the tool at `position` [N, 3] [m], fingers open."""
        raise NotImplementedError

    def control(self, sim: BatchedSim, action: Tensor) -> None:
        """Write actuator targets from `action` [N, U]."""
        raise NotImplementedError

    def tool(self, sim: BatchedSim) -> tuple[Tensor, Tensor]:
        """Position [m] and velocity [m/s] of the tool centre point, [N, 3] each."""
        raise NotImplementedError

    def at_joint_limit(self, sim: BatchedSim) -> Tensor:
        """Rows with a joint within 1 % of its range from a limit, bool [N]."""
        raise NotImplementedError

    def observe(self, sim: BatchedSim) -> Tensor:
        """The robot's own state, [N, observation_size]."""
        raise NotImplementedError

    def observe_object(self, pose: Tensor, velocity: Tensor, tool: Tensor) -> Tensor:
        """An object's columns, position first, [N, object_size].

        Args:
            pose: position [m] and quaternion (w, x, y, z), [N, 7].
            velocity: linear [m/s] and angular [rad/s], [N, 6].
            tool: position of the tool centre point [m], [N, 3].
        """
        return compact_object(pose, velocity, tool)


def outside(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Components of `x` [..., D] out of their bounds [D], bool [..., D]."""
    return x != torch.clamp(x, low, high)


def compact_object(pose: Tensor, velocity: Tensor, tool: Tensor) -> Tensor:
    """Position, offset from the tool, yaw and linear velocity of a box, [N, 11].

    A cube looks the same after half a turn (and after a quarter, which a pusher can ignore), so yaw
    enters as cos 2θ and sin 2θ.
    """
    position, (w, x, y, z) = pose[:, :3], pose[:, 3:].unbind(1)
    # Where the box's x axis points in the plane, as a complex number; squared, it turns twice.
    axis = torch.complex(0.5 - torch.addcmul(y * y, z, z), torch.addcmul(w * z, x, y))
    double_yaw = torch.view_as_real(torch.sgn(axis).square())
    return torch.cat([position, position - tool, double_yaw, velocity[:, :3]], 1)


class Gantry(Robot):
    """Three slides, yaw and two fingers: the fast default on a CPU.

    Action [N, 5] in [-1, 1]: tool displacement (x, y, z) · 5 cm, yaw · 0.3 rad, grip (> 0 closes).
    Observation [N, 11]: tool position 3 [m], yaw [rad], opening [m], tool velocity 3 [m/s],
    target minus actual position 3 [m], which tells a push from free motion.
    """

    asset = "tabletop_gantry.xml"
    joints = 6
    action_size = 5
    observation_size = 11
    tool_height = 0.02  # of the tool centre point above the finger tips [m]
    tool_low = (-0.3, -0.3, -0.005)  # 25 mm below rest: the servo then presses with 15 N

    stride = (0.05, 0.05, 0.05, 0.3)  # of slides [m] and yaw [rad] for an action of 1

    def bind(self, sim: BatchedSim) -> None:
        """See `Robot`."""
        super().bind(sim)
        like = {"dtype": sim.qpos.dtype, "device": sim.device}
        self._offset = torch.tensor([0.0, 0.0, self.tool_height], **like)
        self._stride = torch.tensor(self.stride, **like)
        yaw = torch.tensor([1.7], **like)
        self._target_low = torch.cat([self.low - self._offset, -yaw])
        self._target_high = torch.cat([self.high - self._offset, yaw])
        limits = torch.as_tensor(sim.model.jnt_range[:4], **like)
        margin = 0.01 * (limits[:, 1] - limits[:, 0])
        self._limit_low, self._limit_high = limits[:, 0] + margin, limits[:, 1] - margin

    def start(self, sim: BatchedSim, rng: CounterRNG, position: Tensor) -> Tensor:
        """See `Robot`."""
        fingers = torch.full_like(position[:, :2], 0.03)
        yaw = torch.zeros_like(position[:, :1])
        return torch.cat([position - self._offset, yaw, fingers], 1)

    def control(self, sim: BatchedSim, action: Tensor) -> None:
        """See `Robot`."""
        target = sim.qpos[:, :4] + self._stride * action[:, :4]
        sim.ctrl[:, :4] = torch.clamp(target, self._target_low, self._target_high)
        sim.ctrl[:, 4:6] = 0.04 * (action[:, 4:] <= 0)

    def tool(self, sim: BatchedSim) -> tuple[Tensor, Tensor]:
        """See `Robot`."""
        return sim.qpos[:, :3] + self._offset, sim.qvel[:, :3]

    def at_joint_limit(self, sim: BatchedSim) -> Tensor:
        """See `Robot`."""
        return outside(sim.qpos[:, :4], self._limit_low, self._limit_high).any(1)

    def observe(self, sim: BatchedSim) -> Tensor:
        """See `Robot`."""
        position, velocity = self.tool(sim)
        slides, yaw, left, right = sim.qpos[:, :6].split((3, 1, 1, 1), 1)
        return torch.cat([position, yaw, left + right, velocity, sim.ctrl[:, :3] - slides], 1)


class Chain:
    """Kinematics of the hinges between the world and a site, read from the compiled model.

    The frame of hinge k is F_k Rz(q_k) in the frame of hinge k - 1, and the site is fixed in the
    last one: the constant transforms F are all there is to know about an arm.

    Args:
        model: a model in which every hinge on the way turns about the z axis of its body.
        site: name of the site.
        device: where to compute.
        dtype: in which precision.

    Attributes:
        limits: of the hinges, lower and upper [rad], [2, J].
    """

    def __init__(
        self, model: mujoco.MjModel, site: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        at = model.site(site)
        body, fixed = int(at.bodyid[0]), _transform(at.pos, at.quat)
        hinges: list[int] = []
        transforms: list[np.ndarray] = []
        while body:
            if model.body_jntnum[body]:
                hinges.insert(0, int(model.body_jntadr[body]))
                transforms.insert(0, fixed)
                fixed = np.eye(4)
            fixed = _transform(model.body_pos[body], model.body_quat[body]) @ fixed
            body = int(model.body_parentid[body])
        if (model.jnt_axis[hinges] != [0, 0, 1]).any() or model.jnt_pos[hinges].any():
            raise ValueError(f"site {site!r}: a hinge does not turn about the z axis of its body")
        constants = np.stack([fixed, *transforms]), model.jnt_range[hinges].T
        fixed_transforms, self.limits = (
            torch.as_tensor(constant, dtype=dtype, device=device) for constant in constants
        )
        self._before, self._after = fixed_transforms[:-1], fixed_transforms[-1]

    def __call__(self, joints: Tensor) -> tuple[Tensor, Tensor]:
        """Pose of the site [4, 4, N] and its Jacobian [6, J, N], linear rows first.

        Args:
            joints: joint positions [rad], [J, N].
        """
        cosine, sine = joints.cos()[:, None], joints.sin()[:, None]
        x, y, z, origin = (column[..., None] for column in self._before.unbind(2))
        links = torch.stack(
            [
                x * cosine + y * sine,
                y * cosine - x * sine,
                *(column.expand(-1, -1, joints.shape[1]) for column in (z, origin)),
            ],
            2,
        )
        frames = [links[0]]
        for link in links[1:]:
            frames.append(_compose(frames[-1], link))
        site = _compose(frames[-1], self._after[..., None])
        hinges = torch.stack(frames, 2)
        axis, origin = hinges[:3, 2], hinges[:3, 3]
        linear = torch.linalg.cross(axis, site[:3, 3:] - origin, dim=0)
        return site, torch.cat([linear, axis])


def _transform(position: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Homogeneous transform [4, 4]."""
    transform, rotation = np.eye(4), np.empty(9)
    mujoco.mju_quat2Mat(rotation, quaternion)
    transform[:3, :3], transform[:3, 3] = rotation.reshape(3, 3), position
    return transform


def _compose(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product [A, C, N] of [A, B, N] and [B, C, N].

    Unlike `@` it is the same for an environment whatever N, and never rounded to TF32, which would
    be 1 mm at an arm's length.
    """
    return (a[:, :, None] * b).sum(1)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector, [A, B, N] and [B, N] to [A, N]."""
    return (matrix * vector).sum(1)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solution [D, N] of positive definite systems [D, D, N] by Gauss-Jordan elimination.

    Without pivoting there is nothing to decide, so that no CUDA device has to be waited for.
    """
    system = torch.cat([matrix, vector[:, None]], 1)
    for k in range(len(system)):
        pivot = system[k] / system[k, k]
        system = system - system[:, k, None] * pivot
        system[k] = pivot
    return system[:, -1]


def _rotate(rotation: Tensor, vector: Tensor) -> Tensor:
    """`rotation` [3, 3, N] followed by a turn about `vector` [3, N] by its length [rad]."""
    angle = torch.linalg.vector_norm(vector, dim=0)
    once = torch.linalg.cross(vector[:, None], rotation, dim=0)
    twice = torch.linalg.cross(vector[:, None], once, dim=0)
    # Rodrigues' formula; sinc keeps it finite at a turn by zero.
    first, second = torch.sinc(angle / torch.pi), torch.sinc(angle / (2 * torch.pi)).square() / 2
    return rotation + first * once + second * twice


def _quaternion(rotation: Tensor) -> Tensor:
    """Quaternions (w, x, y, z) with w >= 0 of rotation matrices [3, 3, N], [4, N]."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotation.flatten(0, 1)
    wx, wy, wz, xy, xz, yz = zy - yz, xz - zx, yx - xy, xy + yx, xz + zx, yz + zy
    squares = torch.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz])
    w, x, y, z = squares
    # 4 q qᵀ: every row is q up to a factor, the row of the largest square safely so.
    outer = torch.stack([w, wx, wy, wz, wx, x, xy, xz, wy, xy, y, yz, wz, xz, yz, z])
    largest = squares.argmax(0).expand(1, 4, -1)
    row = outer.view(4, 4, -1).gather(0, largest)[0]
    return _upright(row / torch.linalg.vector_norm(row, dim=0), dim=0)


def _upright(quaternion: Tensor, dim: int) -> Tensor:
    """Of the two quaternions of a rotation the one with w >= 0; components are along `dim`."""
    return torch.where(quaternion.narrow(dim, 0, 1) < 0, -quaternion, quaternion)


class Panda(Robot):
    """A Franka Emika Panda under inverse kinematics, with the observation and action of SLIM.

    Action [N, 7] in [-1, 1]: tool displacement (x, y, z) · 3 cm, rotation vector in the world's
    frame · 0.25 rad, grip (> 0 closes); both relative to where the tool is.
    Observation [N, 29]: joint positions 9 [rad, m], velocities of the arm 7 [rad/s], tool position
    3 [m] and orientation 4 (quaternion, the identity when pointing straight down), tool velocity 6
    [m/s, rad/s]; an object adds its pose 7 and velocity 6.

    Source: Emukpere et al., "SLIM: Skill Learning with Multiple Critics", ICRA 2024. Joint targets
    replace its operational space control, whose torques would change at every physics step.
    """

    asset = "tabletop_panda.xml"
    joints = 9
    action_size = 7
    observation_size = 29
    object_size = 13
    tool_low = (-0.3, -0.3, 0.005)  # the tips are 9 mm lower: the lowest target presses the table
    damping = 0.1  # λ of damped least squares [m, rad]; less of it lets singular poses run wild
    stride = 0.15  # longest step in joint space [rad], which bounds the speed near singular poses
    iterations = 2  # of damped least squares per control step

    def bind(self, sim: BatchedSim) -> None:
        """See `Robot`."""
        super().bind(sim)
        model, like = sim.model, {"dtype": sim.qpos.dtype, "device": sim.device}
        self._chain = Chain(model, "tool", **like)
        self._ridge = self.damping**2 * torch.eye(6, **like)[..., None]
        low, high = self._chain.limits
        margin = 0.01 * (high - low)
        self._margin_low, self._margin_high = low + margin, high - margin
        # What `start` needs: base and wrist, and length and bend of the arm's two planar links.
        base, elbow = model.body("base").pos, model.body("link4").pos[0]
        wrist, flange = model.body("link5").pos, model.body("link7").pos[0]
        below = model.body("hand").pos[2] + model.site("tool").pos[2]
        self._base, self._flange = base.tolist(), float(flange)
        self._drop = float(below - base[2] - model.body("link1").pos[2])
        upper, fore = (-model.body("link3").pos[1], elbow), (wrist[1], -wrist[0])
        self._lengths = math.hypot(*upper), math.hypot(*fore)
        self._bends = math.atan2(upper[1], upper[0]), math.atan2(fore[1], fore[0])

    def start(self, sim: BatchedSim, rng: CounterRNG, position: Tensor) -> Tensor:
        """See `Robot`; the hand points straight down and the fingers open along y.

        Joints 3 and 5 stay at zero, so that the arm is a planar one with two links, whose inverse
        kinematics has a closed form (elbow up).
        """
        x, y, z = position.to(sim.qpos.dtype).unbind(1)
        x, y = x - self._base[0], y - self._base[1]
        azimuth = torch.atan2(y, x)
        # From the shoulder to the wrist, outwards and upwards.
        outwards, upwards = torch.hypot(x, y) - self._flange, z + self._drop
        (upper, fore), (upper_bend, fore_bend) = self._lengths, self._bends
        square = outwards.square() + upwards.square()
        cosine = (square - upper**2 - fore**2) / (2 * upper * fore)
        elbow = torch.acos(cosine.clamp(-1, 1))
        lean = torch.atan2(outwards, upwards) - torch.atan2(
            fore * elbow.sin(), upper + fore * elbow.cos()
        )
        joint2, joint4 = lean - upper_bend, -(elbow + upper_bend + fore_bend)
        zero, finger = torch.zeros_like(x), torch.full_like(x, 0.04)
        arm = [azimuth, joint2, zero, joint4, zero, joint2 - joint4, azimuth + torch.pi / 4]
        return torch.stack([*arm, finger, finger], 1)

    def control(self, sim: BatchedSim, action: Tensor) -> None:
        """See `Robot`; the joint targets are held until the next control step."""
        joints = sim.qpos[:, :7].T
        command = action.T.to(joints.dtype)
        pose, _ = self._chain(joints)
        position = pose[:3, 3] + 0.03 * command[:3]
        position = torch.clamp(position, self.low[:, None], self.high[:, None])
        rotation = _rotate(pose[:3, :3], 0.25 * command[3:6])
        for _ in range(self.iterations):
            joints = self._approach(joints, position, rotation)
        sim.ctrl[:, :7] = joints.T
        sim.ctrl[:, 7:9] = torch.where(action[:, 6:] > 0, 0.0, 0.04)

    def _approach(self, joints: Tensor, position: Tensor, rotation: Tensor) -> Tensor:
        """Joint positions [7, N] nearer to a tool pose: one step of damped least squares."""
        pose, jacobian = self._chain(joints)
        turn = torch.linalg.cross(pose[:3, :3], rotation, dim=0).sum(1) / 2
        error = torch.cat([position - pose[:3, 3], turn])
        gram = _compose(jacobian, jacobian.transpose(0, 1)) + self._ridge
        step = _apply(jacobian.transpose(0, 1), _solve(gram, error))
        step = step * (self.stride / torch.linalg.vector_norm(step, dim=0)).clamp_max(1)
        return torch.clamp(joints + step, *self._chain.limits[..., None])

    def tool(self, sim: BatchedSim) -> tuple[Tensor, Tensor]:
        """See `Robot`."""
        pose, jacobian = self._chain(sim.qpos[:, :7].T)
        velocity = _apply(jacobian[:3], sim.qvel[:, :7].T)
        return pose[:3, 3].T, velocity.T

    def at_joint_limit(self, sim: BatchedSim) -> Tensor:
        """See `Robot`; an open or closed gripper does not count."""
        return outside(sim.qpos[:, :7], self._margin_low, self._margin_high).any(1)

    def observe(self, sim: BatchedSim) -> Tensor:
        """See `Robot`."""
        velocity = sim.qvel[:, :7].T
        pose, jacobian = self._chain(sim.qpos[:, :7].T)
        rotation, twist = _quaternion(pose[:3, :3]), _apply(jacobian, velocity)
        return torch.cat([sim.qpos[:, :9].T, velocity, pose[:3, 3], rotation, twist]).T

    def observe_object(self, pose: Tensor, velocity: Tensor, tool: Tensor) -> Tensor:
        """See `Robot`."""
        return torch.cat([pose[:, :3], _upright(pose[:, 3:], dim=1), velocity], 1)


ROBOTS: dict[str, type[Robot]] = {"gantry": Gantry, "panda": Panda}

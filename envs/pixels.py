"""Agents seen by a camera, in front of what they cannot control, drawn by torch alone.

`pixels/arm`, `pixels/cartpole` and `pixels/point` are capsules rasterised by signed distance over a
backdrop. What the agent controls and what merely distracts are known exactly, so that one can probe
what a representation kept of either. Tasks of dm_control from pixels are in `envs/pixels_dmc.py`.

Shape letters: N environments, S state, P pose, K capsules, U action features, R side of the picture
[pixels].
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from envs.backdrop import MANY, Backdrop, Background, Recorded, check_whole, record
from envs.base import BatchedEnv
from envs.suite import tolerance
from envs.video import Split

AGENT_COLOUR, TARGET_COLOUR = (232, 160, 92), (214, 64, 69)


class Rasteriser:
    """Shapes over pictures, with edges one pixel wide.

    Args:
        size: R.
        extent: the picture shows [-extent, extent]² [m], y upwards.
        device: where pictures live.
    """

    def __init__(self, size: int, extent: float, device: torch.device | str = "cpu") -> None:
        self.pixel = 2 * extent / size
        centres = (torch.arange(size, device=device) + 0.5) * self.pixel - extent
        self._x, self._y = centres.view(1, 1, size), -centres.view(1, size, 1)

    def coverage(self, capsules: Tensor) -> Tensor:
        """How much of each pixel the union of capsules covers, [N, 1, R, R] in 0 .. 1.

        Args:
            capsules: ends and radius (x0, y0, x1, y1, r), [N, K, 5] [m]; equal ends make a disk.
        """
        union: Tensor | None = None
        for capsule in capsules.unbind(1):  # one at a time stays in the cache
            x0, y0, x1, y1, radius = capsule[..., None, None].unbind(1)
            u, v, dx, dy = self._x - x0, self._y - y0, x1 - x0, y1 - y0
            inverse = 1 / (dx * dx + dy * dy).clamp(min=1e-12)
            along = (u * (dx * inverse) + v * (dy * inverse)).clamp_(0, 1)
            distance = torch.addcmul(u, along, dx, value=-1).square_()
            across = torch.addcmul(v, along, dy, value=-1)
            distance.addcmul_(across, across).sqrt_().sub_(radius)
            union = distance if union is None else torch.minimum(union, distance, out=union)
        assert union is not None
        return union.mul_(-1 / self.pixel).add_(0.5).clamp_(0, 1)[:, None]

    @staticmethod
    def paint(picture: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Layers over a picture uint8 [N, 3, R, R], a fresh one.

        Args:
            picture: the backdrop.
            layers: colour [3, 1, 1] in 0 .. 255 and coverage [N, 1, R, R] of each, hindmost first.
        """
        image = picture.float()
        for colour, coverage in layers:
            image.lerp_(colour, coverage)
        return image.add_(0.5).to(torch.uint8)


class RasterEnv(BatchedEnv):
    """A task whose physics and pictures are torch: a subclass has the physics, shapes and reward.

    Observations are uint8 [N, 3, R, R]. An episode is `duration` control steps, of which each step
    does `action_repeat` with the same action; their rewards are added. The last step is whole, too,
    where `action_repeat` does not divide `duration`. `info` has

    - `controllable` [N, P]: the agent's pose, exactly;
    - `distractor` [N, D]: what the backdrop shows, exactly; see `Backdrop.state`;
    - `frame` int64 [N]: the frame shown, as an index into the pool of clips;
    - `target` [N, 2] [m], where there is one: neither controllable nor a distractor.

    Args:
        num_envs: N.
        device: any; pictures are drawn there.
        seed: of starts, targets and backdrops.
        background: 'none', 'static', 'video', 'ghost' (another agent of the same kind, recorded) or
            'noise'.
        window: side of the distractor in the middle of the picture [pixels], 32, 40 or 64 in the
            paper; None for all of the picture.
        split: backdrops of 'train', or 'held-out' ones that are never among the former.
        videos: folder of videos; None takes those that ship inside packages (extra `video`).
        size: R.
        action_repeat: control steps per step; None for the task's own.
        sparse: a reward only near the target (upright), instead of one that leads there.
        duration: control steps of an episode, which has one target; None for 1000.
    """

    extent: float
    """Half the side of what the picture shows [m]."""
    control_dt: float
    """Seconds per control step."""
    repeat: int
    """Default of `action_repeat`."""
    actions: int
    state_size: int
    duration: int = 1000
    terminates = False

    def __init__(
        self,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        background: Background = "none",
        window: int | None = None,
        split: Split = "train",
        videos: str | Path | None = None,
        size: int = 64,
        action_repeat: int | None = None,
        sparse: bool = False,
        duration: int | None = None,
    ) -> None:
        num_envs = check_whole("num_envs", num_envs, 1, MANY)
        size = check_whole("size", size, 16, 512, 4)
        if duration is not None:
            self.duration = check_whole("duration", duration, 1, MANY)
        repeat = self.repeat if action_repeat is None else action_repeat
        self.action_repeat = check_whole("action_repeat", repeat, 1, self.duration)
        if not isinstance(sparse, bool):
            raise ValueError(f"sparse={sparse!r}: expected True or False")
        self.max_episode_steps = math.ceil(self.duration / self.action_repeat)
        self.dt = self.control_dt * self.action_repeat
        self.sparse = sparse
        images = gym.spaces.Box(0, 255, (3, size, size), np.uint8)
        action = gym.spaces.Box(-1, 1, (self.actions,), np.float32)
        super().__init__(num_envs, images, action, device, seed)
        # In float64, since sines and exponentials of the last rows of a batch are not rounded like
        # those of the others: in float32 a picture could depend on N.
        shape = (num_envs, self.state_size)
        self.state = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.target = torch.zeros(num_envs, 2, device=self.device)
        ghost = functools.partial(_ghost, type(self), self.action_repeat, split)
        self.backdrop = Backdrop(
            background, num_envs, size, window, split, videos, ghost, self.device
        )
        self._raster = Rasteriser(size, self.extent, self.device)
        self._agent_colour, self._target_colour = (
            torch.tensor(colour, dtype=torch.float32, device=self.device).view(3, 1, 1)
            for colour in (AGENT_COLOUR, TARGET_COLOUR)
        )

    # ---- what a subclass writes

    def sample(self) -> tuple[Tensor, Tensor | None]:
        """Start states [N, S] and targets [N, 2] [m]; None for a task without."""
        raise NotImplementedError

    def simulate(self, state: Tensor, action: Tensor) -> Tensor:
        """The state [N, S] one control step later, with `action` [N, U] in -1 .. 1."""
        raise NotImplementedError

    def reward(self, states: Tensor, action: Tensor) -> Tensor:
        """Rewards of the control steps that led to `states` [T, N, S], [T, N] in 0 .. 1."""
        raise NotImplementedError

    def pose(self, state: Tensor) -> Tensor:
        """What a picture shows of states [..., S], fresh [..., P]."""
        raise NotImplementedError

    def capsules(self) -> Tensor:
        """The body in `self.state`, [N, K, 5]; see `Rasteriser.coverage`."""
        raise NotImplementedError

    target_radius: float = 0
    """Of the disk drawn at `self.target` [m]; 0 for a task without."""

    # ---- see BatchedEnv

    def _begin(self, mask: Tensor) -> None:
        state, target = self.sample()
        self.state = torch.where(mask[:, None], state.double(), self.state)
        if target is not None:
            self.target = torch.where(mask[:, None], target, self.target)
        self.backdrop.begin(self.rng, mask)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        states = [self.state]
        for _ in range(self.action_repeat):
            states.append(self.simulate(states[-1], action))
        self.state = states[-1]
        reward = self.reward(torch.stack(states[1:]), action).sum(0)
        self.backdrop.advance(self.rng, self.elapsed + 1)
        return reward.float(), torch.zeros_like(self._everyone), {}

    def _observe(self) -> Tensor:
        layers = [(self._agent_colour, self._raster.coverage(self.capsules().float()))]
        if self.target_radius:
            ends = torch.cat((self.target, self.target), 1)
            disk = torch.nn.functional.pad(ends, (0, 1), value=self.target_radius)
            layers.insert(0, (self._target_colour, self._raster.coverage(disk[:, None])))
        return self._raster.paint(self.backdrop.picture(), layers)

    def render(self) -> Tensor:  # type: ignore[override]
        """What is observed, uint8 [N, 3, R, R]."""
        return self._observe()

    def context(self) -> dict[str, Tensor]:
        """The exact state of what is seen; see the class."""
        context = {
            "controllable": self.pose(self.state).float(),
            "distractor": self.backdrop.state(),
        }
        context["frame"] = self.backdrop.frame()
        if self.target_radius:
            context["target"] = self.target.clone()
        return context

    def _state(self) -> dict[str, Tensor]:
        return {"body": self.state, "target": self.target, **self.backdrop.live()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `BatchedEnv`, and `Backdrop.check` for what else is refused."""
        self.backdrop.check(state)
        super().load_state_dict(state)
        self.backdrop.refresh()

    def record(self) -> tuple[Tensor, Tensor]:
        """The agent alone, uint8 [N, 3, R, R], and its pose [N, P]."""
        layers = [(self._agent_colour, self._raster.coverage(self.capsules().float()))]
        return self._raster.paint(self.backdrop.picture(), layers), self.pose(self.state).float()


@functools.lru_cache(8)
def _ghost(kind: type[RasterEnv], action_repeat: int, split: Split, window: int) -> Recorded:
    settings: dict[str, Any] = {"size": window, "action_repeat": action_repeat}
    settings["duration"] = max(kind.duration, action_repeat)
    return record(lambda clips, seed: kind(clips, seed=seed, **settings), split)


class Arm(RasterEnv):
    """Hold the tip of an arm with two links in a target (`pixels/arm`).

    2 motors turn its joints at up to 5 rad/s, which they reach in about 0.05 s: one step of 4
    control steps moves the tip by up to 10 pixels of 64. State: joint angles [rad], their
    velocities [rad/s]. Pose: cosine and sine of both links' directions.
    """

    extent, control_dt, repeat = 1.2, 0.02, 4
    actions, state_size = 2, 4
    target_radius = 0.14
    link, radius = 0.5, 0.07
    speed, rate = 5.0, 20.0  # [rad/s], [1/s]

    def sample(self) -> tuple[Tensor, Tensor]:
        """See `RasterEnv`: any pose at rest, a target within reach."""
        angle = self.rng.uniform(2, low=-math.pi, high=math.pi)
        direction = self.rng.uniform(1, high=2 * math.pi)
        reach = self.rng.uniform(1, low=0.3, high=0.95)
        target = reach * torch.cat((direction.cos(), direction.sin()), 1)
        return torch.cat((angle, torch.zeros_like(angle)), 1), target

    def simulate(self, state: Tensor, action: Tensor) -> Tensor:
        """See `RasterEnv`; velocities approach what is asked for exponentially."""
        angle, velocity = state.split(2, 1)
        keep = math.exp(-self.rate * self.control_dt)  # of the difference to what is asked for
        velocity = keep * velocity + (1 - keep) * self.speed * action
        return torch.cat((angle + self.control_dt * velocity, velocity), 1)

    def reward(self, states: Tensor, action: Tensor) -> Tensor:
        """See `RasterEnv`: 1 for the tip in the target, and less around it."""
        first, second = (self.link * self.pose(states)).split(2, -1)
        tip = first + second
        return near(tip, self.target, self.target_radius, self.sparse)

    def pose(self, state: Tensor) -> Tensor:
        """See `RasterEnv`."""
        first, second = state[..., 0], state[..., 0] + state[..., 1]
        return torch.stack((first.cos(), first.sin(), second.cos(), second.sin()), -1)

    def capsules(self) -> Tensor:
        """See `RasterEnv`."""
        first, second = (self.link * self.pose(self.state)).split(2, 1)
        elbow, tip = first, first + second
        links = torch.stack((torch.cat((0 * elbow, elbow), 1), torch.cat((elbow, tip), 1)), 1)
        return torch.nn.functional.pad(links, (0, 1), value=self.radius)


class Cartpole(RasterEnv):
    """Swing a pole up and balance it (`pixels/cartpole`).

    1 force on the cart. Masses, lengths and rewards are those of dm_control's `cartpole-swingup`
    (`-swingup_sparse` with `sparse`), integrated by semi-implicit Euler at its 100 Hz. State:
    position [m], angle from upright [rad], velocities. Pose: position, cosine and sine of the
    angle.
    """

    extent, control_dt, repeat = 2.0, 0.01, 8
    actions, state_size = 1, 4
    rail, force = 1.8, 10.0  # [m], [N]
    cart_mass, pole_mass, half_pole, gravity = 1.0, 0.1, 0.5, 9.81

    def sample(self) -> tuple[Tensor, None]:
        """See `RasterEnv`: hanging, nearly at rest."""
        state = 0.01 * self.rng.normal(4)
        state[:, 1] += math.pi
        return state, None

    def simulate(self, state: Tensor, action: Tensor) -> Tensor:
        """See `RasterEnv`; Barto, Sutton & Anderson (1983), without friction."""
        position, angle, speed, spin = state.unbind(1)
        sine, cosine = angle.sin(), angle.cos()
        total, moment = self.cart_mass + self.pole_mass, self.pole_mass * self.half_pole
        push = (self.force * action[:, 0] + moment * spin * spin * sine) / total
        inertia = self.half_pole * (4 / 3 - self.pole_mass / total * cosine * cosine)
        turn = (self.gravity * sine - cosine * push) / inertia
        speed = speed + self.control_dt * (push - moment / total * turn * cosine)
        spin = spin + self.control_dt * turn
        free = position + self.control_dt * speed
        position = free.clamp(-self.rail, self.rail)
        speed = torch.where(free == position, speed, 0)
        return torch.stack((position, angle + self.control_dt * spin, speed, spin), 1)

    def reward(self, states: Tensor, action: Tensor) -> Tensor:
        """See `RasterEnv`."""
        position, angle, _, spin = states.unbind(-1)
        upright = angle.cos()
        if self.sparse:
            return tolerance(position, -0.25, 0.25) * tolerance(upright, 0.995, 1)
        centred = (1 + tolerance(position, margin=2)) / 2
        calm = (1 + tolerance(spin, margin=5)) / 2
        effort = (4 + tolerance(action[:, 0], margin=1, sigmoid="quadratic", at_margin=0)) / 5
        return (upright + 1) / 2 * centred * calm * effort

    def pose(self, state: Tensor) -> Tensor:
        """See `RasterEnv`."""
        position, angle = state[..., 0], state[..., 1]
        return torch.stack((position, angle.cos(), angle.sin()), -1)

    def capsules(self) -> Tensor:
        """See `RasterEnv`: the cart and the pole."""
        position, cosine, sine = self.pose(self.state).unbind(1)
        zero, width, one = torch.zeros_like(position), 0.18, torch.ones_like(position)
        cart = torch.stack((position - width, zero, position + width, zero, 0.12 * one), 1)
        tip = position + 2 * self.half_pole * sine
        pole = torch.stack((position, zero, tip, 2 * self.half_pole * cosine, 0.06 * one), 1)
        return torch.stack((cart, pole), 1)


class Point(RasterEnv):
    """Hold a ball in a target (`pixels/point`).

    2 forces move it at up to 1.5 m/s, which it reaches in about 0.12 s, in a box of 2 x 2 m.
    State: position [m], velocity [m/s]. Pose: position.
    """

    extent, control_dt, repeat = 1.2, 0.02, 4
    actions, state_size = 2, 4
    target_radius = 0.16
    radius = 0.12
    speed, rate = 1.5, 8.0  # [m/s], [1/s]

    def sample(self) -> tuple[Tensor, Tensor]:
        """See `RasterEnv`: anywhere at rest."""
        position, target = self.rng.uniform(4, low=-1.0).split(2, 1)
        return torch.cat((position, torch.zeros_like(position)), 1), target

    def simulate(self, state: Tensor, action: Tensor) -> Tensor:
        """See `RasterEnv`; walls stop it."""
        position, velocity = state.split(2, 1)
        keep = math.exp(-self.rate * self.control_dt)  # of the difference to what is asked for
        velocity = keep * velocity + (1 - keep) * self.speed * action
        free = position + self.control_dt * velocity
        position = free.clamp(-1, 1)
        return torch.cat((position, torch.where(free == position, velocity, 0)), 1)

    def reward(self, states: Tensor, action: Tensor) -> Tensor:
        """See `RasterEnv`: 1 for its centre in the target, and less around it."""
        return near(states[..., :2], self.target, self.target_radius, self.sparse)

    def pose(self, state: Tensor) -> Tensor:
        """See `RasterEnv`."""
        return state[..., :2].clone()

    def capsules(self) -> Tensor:
        """See `RasterEnv`."""
        position = self.state[:, :2]
        ball = torch.cat((position, position), 1)
        return torch.nn.functional.pad(ball, (0, 1), value=self.radius)[:, None]


def near(point: Tensor, target: Tensor, radius: float, sparse: bool) -> Tensor:
    """1 within `radius` of the target, [..., N]; 0 outside, or unless sparse a Gaussian of 1 m."""
    return tolerance((point - target).norm(dim=-1), 0, radius, 0.0 if sparse else 1.0)

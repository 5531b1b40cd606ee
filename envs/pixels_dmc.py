"""Tasks of the dm_control suite from pixels, in front of what nobody controls.

The agent is cut out of its picture without a second look at the scene: floors and walls are not
drawn, and what the camera does not see then is the backdrop. Pictures come from the ray tracer of
mujoco_warp, which needs no OpenGL, or from EGL or OSMesa.

Shape letters: N environments, R side of the picture [pixels].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.backdrop import MANY, Backdrop, Background, Jitter, Recorded, check_whole, record
from envs.gl import GLRenderer
from envs.mujoco import Backend, MujocoEnv
from envs.suite import SuiteTask
from envs.video import Split

RendererKind = Literal["ray", "egl", "osmesa"]


class SuitePixels(MujocoEnv):
    """A task of dm_control's suite from pixels, before a plain floor, a video, a ghost or noise.

    Observations are uint8 [N, 3, R, R]; physics, rewards and starts are those of `dmc/*`, rewards
    of repeated actions are added. With a background there is no floor to be seen. `info` has

    - `controllable` [N, D]: dm_control's own observation of the state;
    - `distractor`: what the backdrop shows, exactly, and (if any) the jitter; see `Backdrop.state`
      and `Jitter.values`;
    - `frame` int64 [N]: the frame shown, as an index into the pool of clips.

    Args:
        task: makes the task.
        num_envs: N.
        device: 'cpu' or a CUDA device.
        seed: of starts and backdrops.
        background: 'none', 'static', 'video', 'ghost' (another agent of the same kind, recorded) or
            'noise'.
        window: side of the distractor in the middle of the picture [pixels]; None for all of it.
        split: backdrops of 'train', or 'held-out' ones that are never among the former.
        videos: folder of videos; None takes those that ship inside packages (extra `video`).
        size: R, 64 or 84 in the literature.
        action_repeat: control steps per step.
        camera: name of the camera; None for the first, as in dm_control (quadruped: 'y').
        camera_jitter: largest shift of the agent by a shaking camera [pixels], whose lens is wider
            for it (`cam_fovy` of `sim.model`, which `render` shows and `set_params` replaces).
        colour_jitter: largest change of its colours, as a fraction of their brightness.
        renderer: 'ray' (mujoco_warp), 'egl' or 'osmesa' (OpenGL, one picture after the other, which
            do not follow `set_params`).
        backend: 'auto', 'batch' (C MuJoCo) or 'warp' (mujoco_warp).
        num_threads: threads of the C engine; 0 takes all processors.
    """

    def __init__(
        self,
        task: Callable[[], SuiteTask],
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        background: Background = "none",
        window: int | None = None,
        split: Split = "train",
        videos: str | Path | None = None,
        size: int = 64,
        action_repeat: int = 2,
        camera: str | None = None,
        camera_jitter: int = 0,
        colour_jitter: float = 0.0,
        renderer: RendererKind = "ray",
        backend: Backend = "auto",
        num_threads: int = 0,
    ) -> None:
        made = task()
        num_envs = check_whole("num_envs", num_envs, 1, MANY)
        size = check_whole("size", size, 16, 512, 4)
        action_repeat = check_whole("action_repeat", action_repeat, 1, made.max_episode_steps)
        if renderer not in get_args(RendererKind):
            raise ValueError(f"renderer={renderer!r}: expected one of {get_args(RendererKind)}")
        self.jitter = Jitter(num_envs, camera_jitter, colour_jitter, device)
        made.planes = made.planes and background == "none"
        model = made.model()
        names = [model.camera(i).name for i in range(model.ncam)]
        if camera is not None and camera not in names:
            raise ValueError(f"camera={camera!r}: expected one of {names}")
        self._camera = camera or made.camera or names[0]
        self._side = size + 2 * camera_jitter
        _widen(model, self._camera, self._side / size)
        made.model = lambda: model  # before the engines copy it
        super().__init__(made, num_envs, device, seed, backend, num_threads)
        self.action_repeat = action_repeat
        self.max_episode_steps = math.ceil(made.max_episode_steps / action_repeat)
        self.dt = model.opt.timestep * made.frame_skip * action_repeat
        self.single_observation_space = gym.spaces.Box(0, 255, (3, size, size), np.uint8)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        ghost = functools.partial(_ghost, task, action_repeat, camera, split)
        self.backdrop = Backdrop(
            background, num_envs, size, window, split, videos, ghost, self.device
        )
        self._gl: GLRenderer | None = None
        if renderer != "ray":
            self._gl = GLRenderer(model, self._camera, self._side, renderer)

    def _begin(self, mask: Tensor) -> None:
        super()._begin(mask)
        self.backdrop.begin(self.rng, mask)
        self.jitter.begin(self.rng, mask)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        reward, terminated, info = super()._advance(action)
        for _ in range(self.action_repeat - 1):  # no task of the suite here ends early
            more, terminated, info = super()._advance(action)
            reward = reward + more
        self.jitter.advance(self.rng)
        self.backdrop.advance(self.rng, self.elapsed + 1)  # last: it does not always draw
        return reward, terminated, info

    def _observe(self) -> Tensor:
        sim = self.sim
        if self._gl is not None:
            seen = self._gl.render(sim.qpos, sim.mocap_pos)
        else:
            seen = sim.render(self._camera, (self._side, self._side), "rgba", shadows=False)
        if self.jitter:
            seen = self.jitter.apply(seen)
        return torch.where(seen[:, 3:] > 0, seen[:, :3], self.backdrop.picture())

    def context(self) -> dict[str, Tensor]:
        """The exact state of what is seen; see the class."""
        distractor = self.backdrop.state()
        if self.jitter:
            distractor = torch.cat((distractor, self.jitter.values()), 1)
        controllable = self.task.observe(self.sim)
        return {
            "controllable": controllable,
            "distractor": distractor,
            "frame": self.backdrop.frame(),
        }

    def _state(self) -> dict[str, Tensor]:
        return super()._state() | self.backdrop.live() | {"jitter": self.jitter.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `MujocoEnv`, and `Backdrop.check` for what else is refused."""
        self.backdrop.check(state)
        super().load_state_dict(state)
        self.backdrop.refresh()

    def record(self) -> tuple[Tensor, Tensor]:
        """See `envs.backdrop.record`."""
        return self._observe(), self.task.observe(self.sim)

    def close(self, **kwargs: Any) -> None:
        """Give the OpenGL context back, if there is one."""
        if self._gl is not None:
            self._gl.close()
            self._gl = None
        super().close(**kwargs)


def _widen(model: mujoco.MjModel, camera: str, factor: float) -> None:
    """Let a camera see `factor` times as far in every direction."""
    lens = model.camera(camera).fovy
    lens[:] = np.degrees(2 * np.arctan(factor * np.tan(np.radians(lens) / 2)))


@functools.lru_cache(8)
def _ghost(
    task: Callable[[], SuiteTask],
    action_repeat: int,
    camera: str | None,
    split: Split,
    window: int,
) -> Recorded:
    def alone() -> SuiteTask:
        made = task()
        made.planes = made.targets = False
        return made

    def make(clips: int, seed: int) -> SuitePixels:
        settings: dict[str, Any] = {"size": window, "action_repeat": action_repeat}
        return SuitePixels(alone, clips, seed=seed, camera=camera, **settings)

    return record(make, split)

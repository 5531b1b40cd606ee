"""Batched MuJoCo: `mujoco.batch` on the CPU and `mujoco_warp` on CUDA behind one interface.

A `Task` is torch-only, branch-free code over full batches and is written once for both engines;
`MujocoEnv` turns it into a `BatchedEnv`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, Literal, Protocol

import gymnasium as gym
import mujoco
import numpy as np
import torch
from mujoco import batch
from torch import Tensor

from envs.base import BatchedEnv, CounterRNG, SimulationError, processors

Backend = Literal["auto", "batch", "warp"]
Kind = Literal["rgb", "rgba", "depth", "segmentation"]

_NONE, _VEL, _ACC = (
    stage.value
    for stage in (
        mujoco.mjtStage.mjSTAGE_NONE,
        mujoco.mjtStage.mjSTAGE_VEL,
        mujoco.mjtStage.mjSTAGE_ACC,
    )
)
_FOLLOWS = (
    *("cam_pos0", "cam_poscom0", "cam_mat0"),
    *("light_pos0", "light_poscom0", "light_dir0"),
)
"""What `mj_setConst` computes of cameras and lights."""


class BatchedSim(Protocol):
    """N simulations of one model, stepped together.

    `qpos`, `qvel`, `ctrl`, `time`, `mocap_pos` and the tensors `field` returns are live views
    [N, ...]: read them after a call, write `qpos` ... `mocap_pos` before one.
    """

    model: mujoco.MjModel
    num_envs: int
    device: torch.device
    qpos: Tensor
    qvel: Tensor
    ctrl: Tensor
    time: Tensor
    mocap_pos: Tensor

    def field(self, name: str) -> Tensor:
        """Live view [N, ...] of a derived `MjData` field such as `sensordata` or `xpos`."""
        ...

    def step(self, nstep: int, fresh: bool = False, mask: Tensor | None = None) -> None:
        """Advance by `nstep` physics steps with `ctrl` held, all rows or those in `mask`.

        Derived fields then describe the state one substep ago, as after `mj_step`; `fresh=True`
        recomputes those that depend on position and velocity.

        Raises:
            SimulationError: MuJoCo gave up, e.g. for want of memory.
        """
        ...

    def reset(self, mask: Tensor) -> None:
        """Put the simulations in `mask` (bool [N]) in the model's default state."""
        ...

    def forward(self, mask: Tensor | None = None, forces: bool = False) -> None:
        """Recompute derived fields from the state, of the rows in `mask` or of all.

        Args:
            mask: bool [N].
            forces: also sensors that depend on forces and accelerations, with `ctrl` as it is.
        """
        ...

    def set_params(self, params: dict[str, Tensor], mask: Tensor | None = None) -> None:
        """Give `MjModel` fields one value per simulation, [N, ...], constants following."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Live tensors that hold the complete integration state, and `model.*` for `set_params`."""
        ...

    def check_overflow(self) -> None:
        """Raise SimulationError if contacts or constraints were dropped since the last call.

        Waits for the device: for the boundaries of rollouts, not for every step.
        """
        ...

    def render(
        self, camera: str, resolution: tuple[int, int], kind: Kind = "rgb", shadows: bool = True
    ) -> Tensor:
        """Pictures [N, C, height, width] of all simulations; see `MujocoEnv.render`."""
        ...


class MjBatchSim:
    """C MuJoCo on a thread pool (`mujoco.batch`): bit-identical to one `MjData` per simulation.

    Args:
        model: the model, shared by all simulations except for fields given to `set_params`.
        num_envs: N.
        num_threads: threads of the pool; 0 takes the processors this process may use.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, num_threads: int = 0) -> None:
        self.model, self.num_envs, self.device = model, num_envs, torch.device("cpu")
        if not isinstance(num_threads, Integral) or num_threads < 0:
            raise ValueError(f"num_threads={num_threads!r}: expected at least 0, a whole number")
        self._batch = batch.Batch(model, num_envs, min(num_threads or processors(), num_envs))
        self._rows = torch.from_numpy(self._batch.state)
        self.qpos, self.qvel, self.ctrl, self.time, self.mocap_pos = (
            torch.from_numpy(self._batch.bind(name))
            for name in ("qpos", "qvel", "ctrl", "time", "mocap_pos")
        )
        self._fields: dict[str, Tensor] = {}
        self._renderers: dict[Any, Any] = {}
        self._params: set[str] = set()

    def field(self, name: str) -> Tensor:
        """See `BatchedSim`; the view must not be written."""
        if name not in self._fields:
            array = self._batch.bind(name)
            array.flags.writeable = True  # torch has no read-only tensors and would warn
            self._fields[name] = torch.from_numpy(array)
            array.flags.writeable = False
        return self._fields[name]

    def step(self, nstep: int, fresh: bool = False, mask: Tensor | None = None) -> None:
        """See `BatchedSim`."""
        try:
            self._batch.step(self._ids(mask), nstep, _VEL if fresh else _NONE)
        except batch.SimulationError as error:
            raise SimulationError(" ".join(str(error).split())) from None

    def reset(self, mask: Tensor) -> None:
        """See `BatchedSim`."""
        self._batch.reset(self._ids(mask), stage=_NONE)

    def forward(self, mask: Tensor | None = None, forces: bool = False) -> None:
        """See `BatchedSim`."""
        self._batch.forward(self._ids(mask), _ACC if forces else _VEL)

    def set_params(self, params: dict[str, Tensor], mask: Tensor | None = None) -> None:
        """See `BatchedSim`."""
        rows = slice(None) if mask is None else mask.numpy()
        for name, value in params.items():
            self._batch.expand(name)[rows] = value.numpy()[rows]
        self._batch.set_const(self._ids(mask))
        self._params |= params.keys()
        for renderer in self._renderers.values():
            renderer.set_params(self._visible())

    def state(self) -> dict[str, Tensor]:
        """See `BatchedSim`: one row per simulation, warm start included."""
        expanded = {f"model.{k}": torch.from_numpy(self._batch.expand(k)) for k in self._params}
        return {"rows": self._rows, **expanded}

    def check_overflow(self) -> None:
        """See `BatchedSim`: C MuJoCo allocates what it needs."""

    def render(
        self, camera: str, resolution: tuple[int, int], kind: Kind = "rgb", shadows: bool = True
    ) -> Tensor:
        """See `BatchedSim`: ray-traced by mujoco_warp, so that no OpenGL is needed."""
        from envs.warp import Renderer  # compiles kernels: only for those who look

        key = (camera, resolution, kind, shadows)
        if key not in self._renderers:
            self._renderers[key] = Renderer(
                self.model, self.num_envs, *key[:2], shadows=shadows, kind=kind
            )
            self._renderers[key].set_params(self._visible())
        mocap_quat = torch.from_numpy(self._batch.bind("mocap_quat"))
        return self._renderers[key].render(self.qpos, self.mocap_pos, mocap_quat)

    def _visible(self) -> dict[str, Tensor]:
        """Fields given to `set_params`, and what places cameras and lights in consequence."""
        names = self._params | (set(_FOLLOWS) if self._params else set())
        return {name: torch.from_numpy(self._batch.expand(name)) for name in names}

    @staticmethod
    def _ids(mask: Tensor | None) -> np.ndarray | None:
        return None if mask is None else mask.numpy()  # Batch takes a bool [N] as well


def make_sim(
    model: mujoco.MjModel,
    num_envs: int,
    device: torch.device | str = "cpu",
    backend: Backend = "auto",
    num_threads: int = 0,
) -> BatchedSim:
    """The simulation engine for a device: `auto` takes batch on the CPU and warp on CUDA."""
    device = torch.device(device)
    if backend == "auto":
        backend = "batch" if device.type == "cpu" else "warp"
    if backend == "batch":
        if device.type != "cpu":
            raise ValueError(f"backend='batch' runs on the CPU, not on device={str(device)!r}")
        return MjBatchSim(model, num_envs, num_threads)
    if backend == "warp":
        from envs.warp import MjWarpSim

        return MjWarpSim(model, num_envs, device)
    raise ValueError(f"backend={backend!r}: expected 'auto', 'batch' or 'warp'")


class Task:
    """What the physics means. Torch-only and branch-free over full batches.

    Attributes:
        frame_skip: physics steps per control step.
        terminates: whether an episode may end before `max_episode_steps`.
        max_episode_steps: control steps after which an episode is truncated.
        fresh: whether `observe` or `reward` read derived fields of the current state.
        forces: whether they read sensors of forces or accelerations, such as touch. After a step
            these are a substep old; after a reset they are what they are without actuation.
        observation_size: D.
        observation_bound: of the observation space; no observation is larger in magnitude.
        reward_names, skill_columns: see `BatchedEnv`.
    """

    frame_skip: int
    max_episode_steps: int
    terminates: bool = True
    fresh: bool = False
    forces: bool = False
    observation_size: int
    observation_bound: float = np.inf
    reward_names: tuple[str, ...] = ("reward",)
    skill_columns: list[int] | None = None

    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        raise NotImplementedError

    def bind(self, sim: BatchedSim) -> None:
        """Allocate per-environment tensors and look up addresses, once."""

    def action_space(self, model: mujoco.MjModel) -> gym.spaces.Box:
        """Space of one action; by default the actuators' control range."""
        low, high = model.actuator_ctrlrange.T.astype(np.float32)
        return gym.spaces.Box(low, high, dtype=np.float32)

    def control(self, sim: BatchedSim, action: Tensor) -> None:
        """Write `sim.ctrl` from `action` [N, U]."""
        sim.ctrl.copy_(action)

    def sample_reset(self, sim: BatchedSim, rng: CounterRNG, mask: Tensor) -> None:
        """Write the start state of the rows in `mask`, which are in the model's default state."""
        raise NotImplementedError

    def observe(self, sim: BatchedSim) -> Tensor:
        """Observations, float32 [N, D]."""
        raise NotImplementedError

    def reward(self, sim: BatchedSim, action: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Reward float32 [N] and info of the transition that has just been simulated."""
        raise NotImplementedError

    def terminated(self, sim: BatchedSim) -> Tensor:
        """Rows that reached a terminal state, bool [N]."""
        return torch.zeros(sim.num_envs, dtype=torch.bool, device=sim.device)

    def state(self) -> dict[str, Tensor]:
        """Live tensors the task keeps besides the simulation's."""
        return {}


class MujocoEnv(BatchedEnv):
    """A `Task` on a `BatchedSim`.

    Args:
        task: the task.
        num_envs: N.
        device: 'cpu' or a CUDA device.
        seed: of the start states.
        backend: engine; see `make_sim`.
        num_threads: threads of the CPU engine; 0 takes all processors.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        backend: Backend = "auto",
        num_threads: int = 0,
    ) -> None:
        model = task.model()
        self.task = task
        self.sim = make_sim(model, num_envs, device, backend, num_threads)
        self.max_episode_steps = task.max_episode_steps
        self.reward_names, self.skill_columns = task.reward_names, task.skill_columns
        self.dt = float(model.opt.timestep) * task.frame_skip
        self.terminates = task.terminates
        bound = task.observation_bound
        observation_space = gym.spaces.Box(-bound, bound, (task.observation_size,), np.float32)
        super().__init__(num_envs, observation_space, task.action_space(model), device, seed)
        task.bind(self.sim)

    def _begin(self, mask: Tensor) -> None:
        self.sim.reset(mask)
        self.task.sample_reset(self.sim, self.rng, mask)
        if self.task.fresh:
            self.sim.forward(mask, self.task.forces)

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        self.task.control(self.sim, action)
        self.sim.step(self.task.frame_skip, self.task.fresh)
        reward, info = self.task.reward(self.sim, action)
        return reward, self.task.terminated(self.sim), info

    def _observe(self) -> Tensor:
        return self.task.observe(self.sim)

    def _state(self) -> dict[str, Tensor]:
        # sensors of forces describe the last substep: the state alone does not give them back
        sensors = {"sensordata": self.sim.field("sensordata")} if self.task.forces else {}
        return self.sim.state() | sensors | {f"task.{k}": v for k, v in self.task.state().items()}

    def set_params(self, params: Mapping[str, Any], mask: Tensor | None = None) -> None:
        """Give fields of the model one value per environment, e.g. `{"body_mass": [N, nbody]}`.

        What MuJoCo derives from them follows (`mj_setConst`), pictures do, and `state_dict` holds
        them. They stay until they are set again.

        Args:
            params: names of `MjModel` fields, or `opt.<name>`, with values [N, *shape of the
                field]: tensors or arrays.
            mask: bool [N], the environments to change; all if None.

        Raises:
            ValueError: not a field, one that gives the model its structure, a wrong shape, or a
                value that is not finite. Nothing has been changed then.
        """
        rows: Tensor | None = None
        if mask is not None:
            rows = torch.as_tensor(mask, dtype=torch.bool, device=self.device)
            if rows.shape != (self.num_envs,):
                raise ValueError(f"mask: expected shape ({self.num_envs},), got {(*rows.shape,)}")
        values = {name: self._param(name, value) for name, value in params.items()}
        self.sim.set_params(values, rows)
        if self.task.fresh:
            self.sim.forward(rows)

    def _param(self, name: str, value: Any) -> Tensor:
        default = _model_field(self.sim.model, name)
        value = torch.as_tensor(value, device=self.device)
        expected = (self.num_envs, *default.shape)
        if value.shape != expected:
            raise ValueError(f"{name}: expected shape {expected}, got {(*value.shape,)}")
        finite = torch.isfinite(value).view(self.num_envs, -1).all(1)
        if not bool(finite.all()):
            raise ValueError(f"{name}: not finite in environment {int((~finite).nonzero()[0])}")
        return value

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `BatchedEnv`; derived fields are recomputed from the restored state."""
        prefix = "model."
        saved = {k[len(prefix) :]: v for k, v in state["state"].items() if k.startswith(prefix)}
        for name in self.sim.state():  # what has been set here since is back to the model's value
            if name.startswith(prefix) and name not in state["state"]:
                default = torch.as_tensor(_model_field(self.sim.model, name[len(prefix) :]))
                saved[name[len(prefix) :]] = default.expand(self.num_envs, *default.shape)
        params = {name: value.to(self.device) for name, value in saved.items()}
        if any(len(value) != self.num_envs for value in params.values()):
            raise ValueError(f"environment state: expected {self.num_envs} environments")
        if params:
            self.sim.set_params(params)
        restored = {prefix + name: value for name, value in params.items()} | state["state"]
        super().load_state_dict({**state, "state": restored})
        if self.task.fresh:
            self.sim.forward()
        if self.task.forces:
            self.sim.field("sensordata").copy_(state["state"]["sensordata"])

    def check(self) -> None:
        """See `BatchedEnv`."""
        self.sim.check_overflow()

    def render(  # type: ignore[override]
        self,
        camera: str | None = None,
        resolution: tuple[int, int] = (240, 320),
        kind: Kind = "rgb",
        shadows: bool = True,
    ) -> Tensor:
        """Pictures of all environments, ray-traced at once, without OpenGL; a fresh tensor.

        Colours, lights and cameras given to `set_params` (`geom_rgba`, `mat_rgba`, `light_pos`,
        `light_diffuse`, `cam_pos`, `cam_fovy`, ...) are each environment's own.

        Args:
            camera: name of the camera; the model's first if None.
            resolution: height and width.
            kind: 'rgb', 'rgba', 'depth' or 'segmentation'.
            shadows: whether lights cast shadows.

        Returns:
            rgb: uint8 [N, 3, height, width]. rgba: with a fourth channel, 255 where there is
            something and 0 where there is nothing. depth: float32 [N, 1, height, width], along the
            camera's axis [m], 0 where there is nothing. segmentation: int32 [N, 2, height, width],
            index and `mjtObj` type of what is seen, -1 where there is nothing.

        Raises:
            ValueError: the model has no such camera, or an unknown kind.
        """
        if camera is None:
            if not self.sim.model.ncam:
                raise ValueError("render: the model has no camera")
            camera = self.sim.model.camera(0).name
        height, width = resolution
        return self.sim.render(str(camera), (height, width), kind, shadows)


def _model_field(model: mujoco.MjModel, name: str) -> np.ndarray:
    """The value of a field whose values may differ between simulations."""
    if name not in batch.MODEL_FIELDS:
        close = difflib.get_close_matches(name, batch.MODEL_FIELDS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name!r} is not a field of MjModel that can differ{hint}")
    owner, attribute = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
    value = np.asarray(getattr(owner, attribute))
    if value.dtype.kind != "f":
        raise ValueError(f"{name!r} gives the model its structure: it cannot differ")
    return value


def factory(task: Callable[[], Task]) -> Callable[..., MujocoEnv]:
    """The entry of `ENVS` for a task without arguments of its own."""

    def make(
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        backend: Backend = "auto",
        num_threads: int = 0,
    ) -> MujocoEnv:
        return MujocoEnv(task(), num_envs, device, seed, backend, num_threads)

    arguments = """Args:
    num_envs: N.
    device: 'cpu' or a CUDA device.
    seed: of the start states.
    backend: 'auto', 'batch' (C MuJoCo) or 'warp' (mujoco_warp).
    num_threads: threads of the C engine; 0 takes all processors.
"""
    make.__doc__ = f"{inspect.getdoc(getattr(task, 'func', task))}\n\n{arguments}"
    return make

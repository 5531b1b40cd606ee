"""`mujoco_warp` behind `BatchedSim`, and its ray tracer: for CUDA, and with the same code the CPU.

Importing this module is slow and the first use of each function compiles kernels (cached on disk),
so `envs.mujoco` imports it only when it is needed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import mujoco
import torch
import warp as wp
from torch import Tensor

from envs.base import SimulationError
from envs.mujoco import Kind

wp.config.log_level = wp.LOG_WARNING  # before mujoco_warp initialises Warp

import mujoco_warp as mjw  # noqa: E402

BACKGROUND = (0.87, 0.9, 0.93, 1.0)  # RGBA where a ray hits nothing

_STATE = (
    *("time", "qpos", "qvel", "act", "history", "qacc_warmstart", "ctrl", "qfrc_applied"),
    *("xfrc_applied", "eq_active", "mocap_pos", "mocap_quat", "userdata"),
)
"""Fields of MuJoCo's `mjSTATE_INTEGRATION`."""

_DERIVED = (
    *("body_subtreemass", "body_invweight0", "dof_invweight0", "tendon_invweight0"),
    *("tendon_length0", "actuator_acc0", "eq_data", "geom_aabb", "geom_rbound"),
    *("cam_pos0", "cam_poscom0", "cam_mat0", "light_pos0", "light_poscom0", "light_dir0"),
)
"""What `mjw.set_const` computes; where one of these is shared, it takes world 0's value."""

_PER_WORLD = {
    prefix + field.name
    for prefix, owner in (("", mjw.Model), ("opt.", mjw.Option))
    for field in dataclasses.fields(owner)
    if getattr(field.type, "shape", ())[:1] == ("*",)
}

# Not looked at: solver iterations, which models limit on purpose, and limits that nobody can raise.
_NJMAX = mjw.OverflowType.NEFC | mjw.OverflowType.NJMAX_NNZ
_NCONMAX = mjw.OverflowType.BROADPHASE | mjw.OverflowType.NARROWPHASE | mjw.OverflowType.CCD


def default_capacities(model: mujoco.MjModel) -> tuple[int, int]:
    """Contacts and constraint rows per simulation that crowded scenes of the model stay within.

    Eight contacts for each geom that moves and collides: a box on a surface has four, which leaves
    as many for what touches it.

    Returns:
        `nconmax` and `njmax`.
    """
    collides = (model.geom_contype | model.geom_conaffinity) != 0
    moves = model.body_weldid[model.geom_bodyid] != 0
    nconmax = 8 * int((collides & moves).sum())
    condim = int(model.geom_condim[collides].max(initial=1))
    pyramidal = model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL and condim > 1
    njmax = nconmax * (2 * (condim - 1) if pyramidal else condim)
    njmax += int(model.jnt_limited.sum() + model.tendon_limited.sum())
    njmax += int((model.dof_frictionloss > 0).sum() + (model.tendon_frictionloss > 0).sum())
    return max(nconmax, 1), max(njmax + 6 * model.neq, 1)


class _Model:
    """A `mjw.Model` whose fields may differ between simulations.

    Attributes:
        warp: the model.
        fields: live views [N, ...] of the fields that do, by name.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int) -> None:
        # mujoco_warp never resets a diverged simulation by itself, yet rejects the flag for that
        model = copy.copy(model)
        model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self.warp, self.fields = mjw.put_model(model), {}
        self._num_envs = num_envs

    def expand(self, name: str) -> Tensor:
        """Live view [N, ...] of a field; call it where Warp uses the model's device."""
        if name not in self.fields:
            if name not in _PER_WORLD:
                raise ValueError(f"{name!r} cannot differ between simulations in mujoco_warp")
            option = name.startswith("opt.")
            owner, attribute = (self.warp.opt, name[4:]) if option else (self.warp, name)
            shared = getattr(owner, attribute)
            array = wp.empty((self._num_envs, *shared.shape[1:]), dtype=shared.dtype)
            self.fields[name] = wp.to_torch(array).copy_(wp.to_torch(shared))
            setattr(owner, attribute, array)
        return self.fields[name]


@contextmanager
def _no_gc() -> Iterator[None]:
    """While CUDA captures, the garbage collector must not destroy another graph or stream."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Launcher:
    """Runs Warp work in torch's current stream: eagerly once, from then on as a captured graph.

    Args:
        device: 'cpu' or a CUDA device.
    """

    def __init__(self, device: torch.device | str) -> None:
        wp.init()  # streams need it
        self.device = torch.empty(0, device=device).device  # with its index
        self._graphs: dict[Hashable, Any] = {}
        # torch's default stream is the legacy one, on which CUDA cannot capture
        self._capturing = wp.Stream(str(self.device)) if self.device.type == "cuda" else None

    def scope(self) -> Any:
        """Context in which Warp uses the device and torch's stream, so that neither waits."""
        if self._capturing is None:
            return wp.ScopedDevice("cpu")
        return wp.ScopedStream(wp.stream_from_torch(self.device))

    def __call__(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run `work`, which always does the same launches for the same `key`."""
        with self.scope():
            if key in self._graphs:
                wp.capture_launch(self._graphs[key])
                return
            with wp.ScopedStream(self._capturing, sync_exit=True):
                work()  # the real run; also loads the kernels
                with _no_gc(), wp.ScopedCapture() as capture:
                    work()  # recorded, not executed
            self._graphs[key] = capture.graph


class MjWarpSim:
    """MuJoCo in float32 on many simulations at once (`mujoco_warp`).

    Contacts and constraints live in arrays of fixed size. What does not fit is dropped, and
    `check_overflow` tells; call it where waiting for the device does not hurt.

    Args:
        model: the model, shared by all simulations except for fields given to `set_params`.
        num_envs: N.
        device: 'cpu' or a CUDA device.
        nconmax: contacts (and pairs of geoms near each other) per simulation, of which all
            simulations share N times as many; None takes `default_capacities`.
        njmax: constraint rows of each simulation; None takes `default_capacities`.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        device: torch.device | str = "cpu",
        nconmax: int | None = None,
        njmax: int | None = None,
    ) -> None:
        contacts, rows = default_capacities(model)
        self.nconmax = contacts if nconmax is None else nconmax
        self.njmax = rows if njmax is None else njmax
        self.model, self.num_envs = model, num_envs
        self._launch = _Launcher(device)
        self.device = self._launch.device
        with self._launch.scope():
            self._fields = _Model(model, num_envs)
            self._model = self._fields.warp
            self._model.opt.warn_overflow = 0  # printing from kernels serialises them
            self._data = mjw.make_data(model, num_envs, nconmax=self.nconmax, njmax=self.njmax)
            self._reset_rows = wp.zeros(num_envs, dtype=bool)
        self.qpos, self.qvel, self.ctrl, self.time, self.mocap_pos = (
            self.field(name) for name in ("qpos", "qvel", "ctrl", "time", "mocap_pos")
        )
        self._reset_mask = wp.to_torch(self._reset_rows)
        self._latest_overflow = self.field("overflow")
        self._overflow = torch.zeros_like(self._latest_overflow)
        self._renderers: dict[Any, Renderer] = {}

    def field(self, name: str) -> Tensor:
        """See `BatchedSim`; 3x3 matrices have nine columns, as in `MjData`."""
        array = getattr(self._data, name)
        view = wp.to_torch(array)
        return view.flatten(-2) if array.dtype is wp.mat33 else view

    def step(self, nstep: int, fresh: bool = False, mask: Tensor | None = None) -> None:
        """See `BatchedSim`; with a mask all rows are simulated, and the others put back."""

        def work() -> None:
            for _ in range(nstep):
                mjw.step(self._model, self._data)
            if fresh:
                self._derive()

        if mask is None:
            self._run(("step", nstep, fresh), work)
            return
        views = [self.field(name) for name in _STATE]
        kept = [view.clone() for view in views]
        self._run(("step", nstep, False), work)
        for view, before in zip(views, kept, strict=True):
            view.copy_(_where(mask, view, before))
        if fresh:
            self.forward()

    def reset(self, mask: Tensor) -> None:
        """See `BatchedSim`."""
        self._overflow |= self._latest_overflow  # which a reset clears
        self._reset_mask.copy_(mask)
        self._run("reset", lambda: mjw.reset_data(self._model, self._data, reset=self._reset_rows))

    def forward(self, mask: Tensor | None = None, forces: bool = False) -> None:
        """See `BatchedSim`; rows outside `mask` become fresh as well, which costs no time.

        Their sensors of forces stay as they are.
        """
        if not forces:
            self._run("forward", self._derive)
            return
        sensors = self.field("sensordata")
        kept = sensors.clone()
        self._run("forces", lambda: mjw.forward(self._model, self._data))
        if mask is not None:
            sensors.copy_(_where(mask, sensors, kept))

    def _run(self, key: Hashable, work: Callable[[], None]) -> None:
        # a graph holds the addresses of its arrays: another one once a field has its own
        self._launch((key, len(self._fields.fields)), work)

    def _derive(self) -> None:
        # not mjw.step1: it clears the sensors that only a full step computes, such as touch
        mjw.fwd_position(self._model, self._data, factorize=False)
        mjw.sensor_pos(self._model, self._data)
        mjw.fwd_velocity(self._model, self._data)
        mjw.sensor_vel(self._model, self._data)

    def set_params(self, params: dict[str, Tensor], mask: Tensor | None = None) -> None:
        """See `BatchedSim`.

        Raises:
            ValueError: a field that mujoco_warp shares between simulations, or a wrong shape.
        """
        for name, value in params.items():
            field = self._expand(name)
            if value.shape != field.shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(field.shape)}, got {tuple(value.shape)}"
                )
            field.copy_(value if mask is None else _where(mask, value.to(field.dtype), field))
        for name in _DERIVED:
            self._expand(name)
        self._run("constants", lambda: mjw.set_const(self._model, self._data))

    def _expand(self, name: str) -> Tensor:
        with self._launch.scope():
            return self._fields.expand(name)

    def state(self) -> dict[str, Tensor]:
        """See `BatchedSim`: warm start, and fields given to `set_params` with what they imply."""
        params = {f"model.{name}": value for name, value in self._fields.fields.items()}
        return {name: self.field(name) for name in _STATE} | params

    def check_overflow(self) -> None:
        """Wait for the device and see whether everything has fitted since the last check.

        Raises:
            SimulationError: contacts or constraints were dropped, so that the physics went wrong.
        """
        overflow = self._overflow | self._latest_overflow
        self._overflow.zero_()
        self._latest_overflow.zero_()
        for limit, flags in (("njmax", _NJMAX), ("nconmax", _NCONMAX)):
            rows = (overflow & int(flags)).nonzero().squeeze(1).tolist()
            if rows:
                raise SimulationError(
                    f"{limit}={getattr(self, limit)} is too small: dropped contacts or constraints "
                    f"in {len(rows)} of {self.num_envs} environments ({str(rows[:8])[1:-1]}"
                    f"{', ...' * (len(rows) > 8)}); give MjWarpSim a larger {limit}"
                )

    def render(
        self, camera: str, resolution: tuple[int, int], kind: Kind = "rgb", shadows: bool = True
    ) -> Tensor:
        """See `BatchedSim`, and `Renderer` for what is drawn."""
        key = (camera, resolution, kind, shadows)
        if key not in self._renderers:
            self._renderers[key] = Renderer(
                self.model, self.num_envs, *key[:2], self.device, shadows, kind, self._fields
            )
        return self._renderers[key].render(self.qpos, self.mocap_pos, self.field("mocap_quat"))


def _where(mask: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """Rows of `value` [N, ...] where `mask` (bool [N]) and of `other` elsewhere."""
    return torch.where(mask.view(-1, *(1,) * (value.dim() - 1)), value, other)


class Renderer:
    """Ray-traced pictures of N simulations at once, without OpenGL.

    Args:
        model: the model.
        num_envs: N.
        camera: name of the camera.
        resolution: height and width.
        device: 'cpu' or a CUDA device.
        shadows: whether lights cast shadows.
        kind: 'rgb', 'rgba', 'depth' or 'segmentation'.
        fields: what differs between the simulations; None for a model of its own, see `set_params`.

    Raises:
        ValueError: the model has no such camera, or an unknown kind.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        camera: str,
        resolution: tuple[int, int],
        device: torch.device | str = "cpu",
        shadows: bool = True,
        kind: Kind = "rgb",
        fields: _Model | None = None,
    ) -> None:
        names = [model.camera(i).name for i in range(model.ncam)]
        if camera not in names:
            raise ValueError(f"camera={camera!r}: expected one of {names}")
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r}: expected one of {get_args(Kind)}")
        self._kind, self._launch = kind, _Launcher(device)
        with self._launch.scope():
            self._fields = _Model(model, num_envs) if fields is None else fields
            self._data = mjw.make_data(model, num_envs, nconmax=1, njmax=1)  # poses only
        self._pose = [
            wp.to_torch(getattr(self._data, name)) for name in ("qpos", "mocap_pos", "mocap_quat")
        ]
        height, width = resolution
        self._shape = (num_envs, height, width, -1)

        self._create = functools.partial(
            mjw.create_render_context,
            model,
            num_envs,
            cam_res=(width, height),
            render_rgb=kind in ("rgb", "rgba"),
            render_depth=kind == "depth",
            render_seg=kind == "segmentation",
            use_shadows=shadows and kind in ("rgb", "rgba"),
            cam_active=[camera],
            # what is hit is written with alpha 1, what is not exactly as this says
            background_color=BACKGROUND if kind == "rgb" else (*BACKGROUND[:3], 0.0),
        )
        self._use_lenses(own=False)

    def _use_lenses(self, own: bool) -> None:
        # The same rays in all simulations are computed once, which makes pictures a quarter faster.
        self._own_lenses = own
        with self._launch.scope():
            self._context = self._create(use_precomputed_rays=not own)

    def set_params(self, params: dict[str, Tensor]) -> None:
        """Fields of the model [N, ...], among them those that follow from others.

        Those that mujoco_warp shares between simulations are not looked at: they are not visible.
        """
        for name in params.keys() & _PER_WORLD:
            with self._launch.scope():
                field = self._fields.expand(name)
            field.copy_(params[name].view(field.shape))

    def render(self, qpos: Tensor, mocap_pos: Tensor, mocap_quat: Tensor | None = None) -> Tensor:
        """A fresh tensor [N, C, height, width], which the next picture does not overwrite.

        The ray tracer's buffer is read in place; the one pass over it puts colours in order.

        Args:
            qpos: [N, nq].
            mocap_pos: positions of mocap bodies, [N, nmocap, 3] [m].
            mocap_quat: their orientations, [N, nmocap, 4]; as before if None.

        Returns:
            rgb: uint8, C = 3. rgba: uint8, C = 4, the last 0 where a ray hits nothing, else 255.
            depth: float32, C = 1, along the camera's axis [m]; 0 where a ray hits nothing.
            segmentation: int32, C = 2, index and `mjtObj` type of what is seen; -1 where a ray hits
            nothing.
        """
        for buffer, value in zip(self._pose, (qpos, mocap_pos, mocap_quat), strict=True):
            if value is not None:
                buffer.copy_(value)
        if not self._own_lenses and self._fields.fields.keys() & {"cam_fovy", "cam_intrinsic"}:
            self._use_lenses(own=True)
        self._launch((len(self._fields.fields), self._own_lenses), self._draw)
        context = self._context
        if self._kind == "depth":
            return wp.to_torch(context.depth_data).view(self._shape).permute(0, 3, 1, 2).clone()
        if self._kind == "segmentation":
            pairs = wp.to_torch(context.seg_data).view(self._shape)
            return pairs.permute(0, 3, 1, 2).contiguous()
        bgra = wp.to_torch(context.rgb_data.view(wp.int32)).view(torch.uint8).view(self._shape)
        blue, green, red, alpha = bgra.unbind(-1)
        colours = (red, green, blue) if self._kind == "rgb" else (red, green, blue, alpha)
        return torch.stack(colours, 1)

    def _draw(self) -> None:
        model, data = self._fields.warp, self._data
        mjw.kinematics(model, data)
        mjw.com_pos(model, data)  # cameras and lights may track a centre of mass
        mjw.camlight(model, data)
        mjw.refit_bvh(model, data, self._context)
        mjw.render(model, data, self._context)

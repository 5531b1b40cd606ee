"""MuJoCo's OpenGL renderer without a display, for those who have EGL or OSMesa.

What makes the suite's pictures slow without a GPU are shadow maps of 2048² and multisampling; both
are off here, as are reflections, haze and skybox.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Literal

import mujoco
import numpy as np
import torch
from torch import Tensor

LIBRARIES = {
    "egl": ("libEGL", "libegl1 libgl1-mesa-dri"),
    "osmesa": ("libOSMesa", "libosmesa6"),
}
"""By renderer, the library it needs and the Debian packages that have it."""


class GLRenderer:
    """Pictures of N simulations, drawn one after the other, since OpenGL has one scene at a time.

    Fields given to `set_params` are not looked at; the ray tracer does.

    Args:
        model: the model.
        camera: name of the camera.
        side: of the picture [pixels].
        kind: 'egl' or 'osmesa'.

    Raises:
        ImportError: the library is missing; names it, and the renderer that needs none.
        ValueError: the model has no such camera.
    """

    def __init__(
        self, model: mujoco.MjModel, camera: str, side: int, kind: Literal["egl", "osmesa"]
    ) -> None:
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if index < 0:
            names = [model.camera(i).name for i in range(model.ncam)]
            raise ValueError(f"camera={camera!r}: expected one of {names}")
        self.model, self._data = model, mujoco.MjData(model)
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        # the offscreen buffer is what a context allocates, and may be smaller than the picture
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        self._gl = _context(kind, side)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, 1000)
        for flag in ("SHADOW", "REFLECTION", "HAZE", "SKYBOX"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
        options = mujoco.MjvOption()
        options.sitegroup[:] = options.tendongroup[:] = 0  # as the ray tracer
        self._fixed = (options, mujoco.MjvPerturb())
        self._area = mujoco.MjrRect(0, 0, side, side)

    def render(self, qpos: Tensor, mocap_pos: Tensor) -> Tensor:
        """Pictures uint8 [N, 4, side, side]: RGB, and 255 where there is something, else 0.

        Args:
            qpos: [N, nq].
            mocap_pos: [N, nmocap, 3] [m].
        """
        side = self._area.width
        colours = np.empty((len(qpos), side, side, 3), np.uint8)
        depths = np.empty((len(qpos), side, side), np.float32)
        poses = (qpos.double().cpu().numpy(), mocap_pos.double().cpu().numpy())
        model, data = self.model, self._data
        self._gl.make_current()
        for colour, depth, data.qpos[:], data.mocap_pos[:] in zip(
            colours, depths, *poses, strict=True
        ):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)  # cameras and lights may track a centre of mass
            mujoco.mj_camlight(model, data)
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(model, data, *self._fixed, self._camera, everything, self._scene)
            mujoco.mjr_render(self._area, self._scene, self._context)
            mujoco.mjr_readPixels(colour, depth, self._area, self._context)
        seen = ((depths < 1) * np.uint8(255))[..., None]  # 1 is the far end, where nothing is
        picture = np.concatenate((colours, seen), -1)[:, ::-1].transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(picture)).to(qpos.device)

    def close(self) -> None:
        """Give the context back."""
        self._context.free()
        self._gl.free()


def _context(kind: str, side: int) -> Any:
    library, packages = LIBRARIES[kind]
    chosen = os.environ.get("PYOPENGL_PLATFORM") or kind
    if chosen.lower() != kind:  # PyOpenGL takes one for good
        raise ImportError(
            f"renderer={kind!r}: PYOPENGL_PLATFORM is {chosen!r}, by itself or since this process "
            "asked for that before; expected a new process without it, or renderer='ray'"
        )
    try:
        return importlib.import_module(f"mujoco.{kind}").GLContext(side, side)
    except Exception as error:  # PyOpenGL fails in as many ways as there are missing pieces
        raise ImportError(
            f"renderer={kind!r} needs {library}, which is missing or has no device (Debian: "
            f"apt-get install {packages}); renderer='ray' needs only pip packages "
            f"[{type(error).__name__}: {error}]"
        ) from None

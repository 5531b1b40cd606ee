"""Batched environments whose arrays are torch tensors: `make(id, num_envs, device, seed)`.

`check(env)` is a checker for environments of your own.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from envs import particles, pixels, suite
from envs.base import BatchedEnv, CounterRNG, check_device
from envs.combat import make_combat
from envs.contract import ContractError, check
from envs.families import AntDir, HalfCheetahDir, HalfCheetahVel, HopperParam, WalkerParam, family
from envs.foreign import from_envpool, from_gymnasium, from_pettingzoo
from envs.locomotion import Ant, HalfCheetah, Hopper, Walker2d
from envs.mujoco import factory
from envs.pixels_dmc import SuitePixels
from envs.point import PointRobot
from envs.smac import from_smac
from envs.tabletop import make_tabletop
from envs.units import MAPS, RANDOM, SMAX_MAPS

__all__ = [
    "ENVS",
    "FOREIGN",
    "BatchedEnv",
    "ContractError",
    "CounterRNG",
    "check",
    "find",
    "group",
    "make",
]

ENVS: dict[str, Callable[..., BatchedEnv]] = {
    "tabletop": make_tabletop,
    "tabletop/panda": partial(make_tabletop, robot="panda"),
    "half-cheetah": factory(HalfCheetah),
    "hopper": factory(Hopper),
    "walker2d": factory(Walker2d),
    "ant": factory(Ant),
    **{f"dmc/{name}": factory(task) for name, task in suite.TASKS.items()},
    "particles/free": particles.Free,
    "particles/spread": particles.Spread,
    "particles/tag": particles.Tag,
    "particles/formation": particles.Formation,
    "particles/rendezvous": particles.Rendezvous,
    "particles/assigned": particles.Assigned,
    "particles/push-ball": particles.PushBall,
    "point-robot": PointRobot,
    "point-robot/square": partial(PointRobot, goals="square"),
    "half-cheetah-vel": family(HalfCheetahVel),
    "half-cheetah-dir": family(HalfCheetahDir),
    "ant-dir": family(AntDir),
    "hopper-param": family(HopperParam),
    "walker-param": family(WalkerParam),
    **{f"combat/{name}": partial(make_combat, name) for name in (*MAPS, *RANDOM)},
    **{
        f"combat/{name}": partial(make_combat, name, rules="smax")
        for name in SMAX_MAPS
        if name not in MAPS
    },
    "pixels/arm": pixels.Arm,
    "pixels/cartpole": pixels.Cartpole,
    "pixels/point": pixels.Point,
    **{f"pixels/dmc/{name}": partial(SuitePixels, task) for name, task in suite.TASKS.items()},
}


FOREIGN: dict[str, Callable[..., BatchedEnv]] = {
    "gym": from_gymnasium,
    "pettingzoo": from_pettingzoo,
    "envpool": from_envpool,
    "smac": from_smac,
    "smacv2": partial(from_smac, package="smacv2"),
}
"""By prefix, what makes the environments of other libraries: `gym/CartPole-v1`."""


def group(prefix: str) -> list[str]:
    """Ids below a prefix: those of `pixels/dmc` are `pixels/dmc/cartpole-balance` and so on."""
    return [id for id in ENVS if id.startswith(f"{prefix.rstrip('/')}/")]


def find(id: str) -> Callable[..., BatchedEnv]:
    """What makes the environment `id`; takes `num_envs`, `device`, `seed` and its own arguments.

    Raises:
        ValueError: unknown id; names the nearest valid, and those of its group.
    """
    if id in ENVS:
        return ENVS[id]
    prefix, _, name = id.partition("/")
    if prefix in FOREIGN and name:
        return partial(FOREIGN[prefix], name)
    if group(id):
        raise ValueError(f"{id!r} is a group of environments; {_members(id)}")
    above, known = id.rpartition("/")[0], [*ENVS, *(f"{prefix}/" for prefix in FOREIGN)]
    hint = _hint(id, known)
    if group(above):
        close = difflib.get_close_matches(id, known, 1)
        hint = f"{hint} {_members(above)}" if close else f"; {_members(above)}"
    raise ValueError(f"unknown environment {id!r}{hint}")


def make(
    id: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    autoreset: AutoresetMode | str = AutoresetMode.SAME_STEP,
    **kwargs: Any,
) -> BatchedEnv:
    """Make a batched environment.

    Threads: the tensors of a step are small, and torch loses more by handing them to threads than
    it gains (measured: 10 to 50 times, on busy processors), so call `torch.set_num_threads(1)` or
    start Python with `OMP_NUM_THREADS=1`, and with `OMP_WAIT_POLICY=PASSIVE`, so that idle threads
    sleep instead of spinning; `train.py` does both unless told otherwise. Physics has threads of
    its own (`num_threads`), which a fork does not copy: make environments after forking, in the
    process that steps them. Worker processes (`workers` of `gym/` and `pettingzoo/`) are not
    forked, and have one thread each.

    Args:
        id: a key of `ENVS`, or of another library: `gym/<id>`, `pettingzoo/<id>` such as
            `pettingzoo/mpe/simple_spread_v3`, `envpool/<id>`, `smac/<map>` or `smacv2/<teams>`.
        num_envs: N.
        device: where its tensors live.
        seed: of everything random in it.
        autoreset: see `BatchedEnv.autoreset`.
        **kwargs: the environment's own arguments.

    Raises:
        ValueError: unknown id, argument or device, or an argument out of range; names the nearest
            valid.
    """
    factory, device = find(id), check_device(device)
    known = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for name in kwargs:
            if name not in known:
                raise ValueError(f"environment {id!r} has no argument {name!r}{_hint(name, known)}")
    env = factory(num_envs=num_envs, device=device, seed=seed, **kwargs)
    env.autoreset = autoreset
    if env.spec is None:
        env.spec = EnvSpec(
            f"infomax/{id.replace('/', '-')}-v0", "envs.adapt:make_view",
            max_episode_steps=env.max_episode_steps, kwargs={"env_id": id, **kwargs},
        )  # fmt: skip
    return env


def _members(prefix: str) -> str:
    """The first ids of a group, for a message."""
    prefix = prefix.rstrip("/")
    names = [id.removeprefix(f"{prefix}/") for id in group(prefix)]
    more = ", …" if len(names) > 10 else ""
    return f"{prefix}/ has {', '.join(names[:10])}{more}; see `train.py list {prefix}`"


def _hint(name: str, choices: Any) -> str:
    close = difflib.get_close_matches(name, list(choices), 1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(choices)}"

"""Batched environments whose arrays are torch tensors: `make(id, num_envs, device, seed)`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from envs import suite
from envs.base import BatchedEnv, CounterRNG
from envs.locomotion import Ant, HalfCheetah, Hopper, Walker2d
from envs.mujoco import factory
from envs.tabletop import make_tabletop

__all__ = ["ENVS", "BatchedEnv", "CounterRNG", "make"]

ENVS: dict[str, Callable[..., BatchedEnv]] = {
    "tabletop": make_tabletop,
    "tabletop/panda": partial(make_tabletop, robot="panda"),
    "half-cheetah": factory(HalfCheetah),
    "hopper": factory(Hopper),
    "walker2d": factory(Walker2d),
    "ant": factory(Ant),
    "dmc/cartpole-balance": factory(suite.Cartpole),
    "dmc/cartpole-balance_sparse": factory(partial(suite.Cartpole, sparse=True)),
    "dmc/cartpole-swingup": factory(partial(suite.Cartpole, swingup=True)),
    "dmc/cartpole-swingup_sparse": factory(partial(suite.Cartpole, swingup=True, sparse=True)),
    "dmc/cheetah-run": factory(suite.Cheetah),
    "dmc/walker-stand": factory(partial(suite.Walker, speed=0)),
    "dmc/walker-walk": factory(partial(suite.Walker, speed=1)),
    "dmc/walker-run": factory(partial(suite.Walker, speed=8)),
    "dmc/reacher-easy": factory(partial(suite.Reacher, radius=0.05)),
    "dmc/reacher-hard": factory(partial(suite.Reacher, radius=0.015)),
    "dmc/ball_in_cup-catch": factory(suite.BallInCup),
    "dmc/finger-spin": factory(suite.Finger),
    "dmc/finger-turn_easy": factory(partial(suite.Finger, radius=0.07)),
    "dmc/finger-turn_hard": factory(partial(suite.Finger, radius=0.03)),
    "dmc/hopper-stand": factory(partial(suite.Hopper, hop=False)),
    "dmc/hopper-hop": factory(partial(suite.Hopper, hop=True)),
    "dmc/pendulum-swingup": factory(suite.Pendulum),
    "dmc/quadruped-walk": factory(partial(suite.Quadruped, speed=0.5)),
    "dmc/quadruped-run": factory(partial(suite.Quadruped, speed=5)),
}


def make(
    id: str, num_envs: int = 1, device: torch.device | str = "cpu", seed: int = 0, **kwargs: Any
) -> BatchedEnv:
    """Make a registered batched environment.

    Args:
        id: a key of `ENVS`.
        num_envs: N.
        device: where its tensors live.
        seed: of everything random in it.
        **kwargs: the environment's own arguments.

    Raises:
        ValueError: unknown id or argument, or an argument out of range; names the nearest valid.
    """
    if id not in ENVS:
        raise ValueError(f"unknown environment {id!r}{_hint(id, ENVS)}")
    known = inspect.signature(ENVS[id]).parameters
    for name in kwargs:
        if name not in known:
            raise ValueError(f"environment {id!r} has no argument {name!r}{_hint(name, known)}")
    return ENVS[id](num_envs=num_envs, device=device, seed=seed, **kwargs)


def _hint(name: str, choices: Any) -> str:
    close = difflib.get_close_matches(name, list(choices), 1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(choices)}"

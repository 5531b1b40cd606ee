"""Batched environments whose arrays are torch tensors: `make(id, num_envs, device, seed)`."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from envs import particles
from envs.base import BatchedEnv, CounterRNG
from envs.tabletop import make_tabletop

__all__ = ["ENVS", "BatchedEnv", "CounterRNG", "make"]

ENVS: dict[str, Callable[..., BatchedEnv]] = {
    "tabletop": make_tabletop,
    "tabletop/panda": functools.partial(make_tabletop, robot="panda"),
    "particles/free": particles.Free,
    "particles/spread": particles.Spread,
    "particles/tag": particles.Tag,
    "particles/formation": particles.Formation,
    "particles/rendezvous": particles.Rendezvous,
    "particles/assigned": particles.Assigned,
    "particles/push-ball": particles.PushBall,
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

"""What the parts of a checkpoint have to look like, checked before anything takes them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of every parameter."""


def require_like(value: Any, like: Any, where: str) -> None:
    """Check that `value` has the structure of `like`; numbers may differ, switches may not.

    Args:
        value: a tree of a checkpoint.
        like: its counterpart here: a tensor (type and shape count), a dict (keys count), a list or
            tuple (length counts), a number, or a bool, str or None (which has to be the same).
        where: what messages call it.

    Raises:
        ValueError: it has not.
    """
    if isinstance(like, Tensor):
        expected, got = _kind(like), _kind(value) if isinstance(value, Tensor) else _show(value)
    elif isinstance(like, dict):
        expected, got = f"keys {sorted(map(str, like))}", _show(value)
        if isinstance(value, dict):
            got = f"keys {sorted(map(str, value))}"
    elif isinstance(like, (list, tuple)):
        expected, got = f"{len(like)} entries", _show(value)
        if isinstance(value, (list, tuple)):
            got = f"{len(value)} entries"
    elif isinstance(like, float):
        finite = type(value) is float and math.isfinite(value)
        expected, got = "a finite float", "a finite float" if finite else _show(value)
    elif type(like) is int:
        expected, got = "an integer", "an integer" if type(value) is int else _show(value)
    else:
        expected, got = _show(like), _show(value)
    if expected != got:
        raise ValueError(f"{where}: expected {expected[:200]}, got {got[:200]}")
    parts: Any = value
    inner: Any = like if isinstance(like, dict) else {}
    inner = dict(enumerate(like)) if isinstance(like, (list, tuple)) else inner
    for key, part in inner.items():
        require_like(parts[key], part, f"{where}[{key!r}]")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take an Adam's moments; its settings stay what the configuration here says.

    By itself, `load_state_dict` takes anything and fails in a later step.

    Raises:
        ValueError: the state belongs to other parameters, or it is none of Adam's.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    own = [len(group["params"]) for group in groups]
    require_like(
        [[0] * len(of_file["params"]) for of_file in saved], [[0] * n for n in own], "groups"
    )
    parameters = [p for group in groups for p in group["params"]]
    indices = [index for of_file in saved for index in of_file["params"]]
    if [type(index) for index in indices] != [int] * len(set(indices)):
        raise ValueError(f"parameters {_show(indices)}: expected different integers")
    for index, moments in state["state"].items():
        if index not in indices:
            raise ValueError(f"moments of parameter {_show(index)}, which no group has")
        like = parameters[indices.index(index)].detach()
        require_like(
            moments, dict(zip(_MOMENTS, (torch.tensor(0.0), like, like), strict=True)),
            f"moments of parameter {index}",
        )  # fmt: skip
    merged = [{**g, "params": f["params"]} for g, f in zip(groups, saved, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": merged})
    for parameter, moments in optimizer.state.items():
        # Fused Adam walks raw memory: moments need the strides of their parameters.
        for name in _MOMENTS[1:]:
            moments[name] = torch.empty_like(parameter).copy_(moments[name])


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _show(value: Any) -> str:
    return f"{_kind(value)}" if isinstance(value, Tensor) else repr(value)[:80]

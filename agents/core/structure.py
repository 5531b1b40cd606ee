"""What the parts of a checkpoint have to look like, checked before anything takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of every parameter."""


def require_like(value: Any, like: Any, where: str) -> None:
    """Check that `value` has the structure of `like`.

    Args:
        value: a tree of a checkpoint.
        like: its counterpart here: a tensor, whose type and shape count, an integer, or a dict of
            them, whose keys count.
        where: what messages call it.

    Raises:
        ValueError: it has not.
    """
    expected, got = _kind(like), _kind(value)
    if expected != got:
        raise ValueError(f"{where}: expected {expected[:200]}, got {got[:200]}")
    for key, part in like.items() if isinstance(like, dict) else ():
        require_like(value[key], part, f"{where}[{key!r}]")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take an Adam's moments; its settings stay what the configuration here says.

    By itself, `load_state_dict` takes anything and fails in a later step.

    Raises:
        ValueError: the state belongs to other parameters, or it is none of Adam's.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    own, got = ([len(group["params"]) for group in some] for some in (groups, saved))
    if own != got:
        raise ValueError(f"expected groups of {own} parameters, got {got}")
    parameters = [p for group in groups for p in group["params"]]
    indices = [index for of_file in saved for index in of_file["params"]]
    if [type(index) for index in indices] != [int] * len(set(indices)):
        raise ValueError(f"parameters {indices}: expected different integers"[:200])
    for index, moments in state["state"].items():
        if index not in indices:
            raise ValueError(f"moments of parameter {index!r}, which no group has"[:200])
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


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"keys {sorted(map(str, value))}"
    return "an integer" if type(value) is int else repr(value)

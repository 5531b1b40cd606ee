"""One agent on several processes: `torchrun --nproc-per-node=N train.py …`.

Every process owns its environments and its memory and learns from them; gradients are averaged, so
that parameters stay the same everywhere. Algorithms do not know of it: a hook on every parameter
sees each backward pass come to its end and averages what it left, before it is clipped or stepped
with, as `DistributedDataParallel` does. Buffers (multipliers, running scales) are averaged after
each update, and normalisers pool what all processes have seen.

With one process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; process 0 writes."""
    return dist.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """Which of this machine's processes this one is, and so which GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world() > 1 else 0


@contextlib.contextmanager
def together() -> Iterator[int]:
    """The processes that `torchrun` started find each other; gives this one's rank."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield rank()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield rank()
    finally:
        dist.destroy_process_group()


def modules(parts: Mapping[str, Any]) -> list[nn.Module]:
    """Every network of an agent: its parts, and those of parts that are no modules themselves."""
    found = []
    for part in parts.values():
        inner = [part, *getattr(part, "__dict__", {}).values()]
        found += [m for m in inner if isinstance(m, nn.Module)]
    return list({id(module): module for module in found}.values())


class Synchronised:
    """Keeps the networks of an agent the same in all processes.

    Args:
        networks: their parameters and buffers become those of process 0.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        networks = list(networks)
        parameters = {id(p): p for m in networks for p in m.parameters()}
        buffers = {id(b): b for m in networks for b in m.buffers()}
        for tensor in [*parameters.values(), *buffers.values()]:
            dist.broadcast(tensor.detach(), 0)
        self._buffers = [b for b in buffers.values() if b.is_floating_point()]
        self._parameters = list(parameters.values())
        self._touched: set[int] = set()
        for i, parameter in enumerate(self._parameters):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _, i=i: self._note(i))
        for module in (inner for m in networks for inner in m.modules()):
            if hasattr(module, "pooled"):
                module.pooled = True  # type: ignore[assignment]

    def _note(self, index: int) -> None:
        if not self._touched:  # the first of this backward pass
            torch.autograd.Variable._execution_engine.queue_callback(self._average_gradients)
        self._touched.add(index)

    def _average_gradients(self) -> None:
        gradients = [self._parameters[i].grad for i in sorted(self._touched)]
        self._touched.clear()
        mean_([g for g in gradients if g is not None])

    def average_buffers(self) -> None:
        """Take every floating-point buffer's mean over the processes."""
        mean_(self._buffers)


@torch.no_grad()
def mean_(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over all processes, one message per type."""
    for kind in dict.fromkeys((t.dtype, t.device) for t in tensors):
        chosen = [t for t in tensors if (t.dtype, t.device) == kind]
        flat = torch.cat([t.reshape(-1) for t in chosen])
        dist.all_reduce(flat)
        flat /= world()
        parts = flat.split([t.numel() for t in chosen])
        torch._foreach_copy_(chosen, [p.view_as(t) for p, t in zip(parts, chosen, strict=True)])


def pooled_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the samples of all processes, each of which has as many."""
    both = mean.clone()
    mean_([both])
    variance = variance + (mean - both).square()
    mean_([variance])
    return both, variance


def everywhere(condition: bool) -> bool:
    """Whether it holds in every process: what decides how many steps are taken has to agree."""
    return condition if world() == 1 else -highest(-int(condition)) == 1


def highest(value: int) -> int:
    """The largest of all processes' values."""
    if world() == 1:
        return value
    shared = torch.tensor(value)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)

"""InfoNCE of embeddings without the score matrix, on one process or many."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_DENSE = 2048 * 2048
"""Scores up to which the matrix is kept: below, recomputing it costs more than it saves."""


def infonce_fused(
    query: Tensor, key: Tensor, symmetric: bool, gather: bool, chunk: int | None
) -> Tensor:
    """InfoNCE [nats, 0-d] of q·k; the partner of query i is key i. See `functional.contrast`.

    The forward pass keeps only log-sum-exps of rows (and columns), the backward pass computes each
    chunk of scores again: two more matrix products instead of N x M numbers of memory.
    """
    if gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # Each process scores its own anchors against everybody's keys; in the other direction its
        # own keys against everybody's queries, so that the mean over processes is the whole.
        offset = dist.get_rank() * len(query)
        key_all = gather_with_gradient(key)
        if not symmetric:
            return _one_way(query, key_all, offset, chunk)
        back = _one_way(key, gather_with_gradient(query), offset, chunk)
        return 0.5 * (_one_way(query, key_all, offset, chunk) + back)
    if not symmetric:
        return _one_way(query, key, 0, chunk)
    if chunk is None and len(query) * len(key) <= _DENSE:
        return 0.5 * (_dense(query, key, 0) + _dense(key, query, 0))
    return _Symmetric.apply(query, key, chunk or _chunk(len(key)))  # type: ignore[return-value]


def gather_with_gradient(x: Tensor) -> Tensor:
    """Rows of all processes [W N, d], in the order of ranks; gradients return to their owners.

    Under DDP, which averages gradients over processes, this makes the mean of the processes' losses
    the loss of one process with all samples. Every process must bring as many rows.
    """
    return _Gather.apply(x)  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def _chunk(keys: int) -> int:
    """Anchors at a time: some 4 MB of scores, which stay in the cache's reach."""
    return max(64, min(1024, 1_048_576 // max(keys, 1)))


def _dense(query: Tensor, key: Tensor, offset: int) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ key.T
        own = scores.diagonal(offset)
        return (own - torch.logsumexp(scores, 1)).mean() + math.log(len(key))


def _one_way(query: Tensor, key: Tensor, offset: int, chunk: int | None) -> Tensor:
    if chunk is None and len(query) * len(key) <= _DENSE:
        return _dense(query, key, offset)
    return _OneWay.apply(query, key, offset, chunk or _chunk(len(key)))  # type: ignore[return-value]


def _space(query: Tensor, key: Tensor, chunk: int) -> Tensor:
    """For a chunk of scores: large tensors that come and go split the free memory."""
    return query.new_empty(min(chunk, len(query)), len(key))


def _scores(query: Tensor, key: Tensor, space: Tensor) -> Tensor:
    return torch.mm(query, key.T, out=space[: len(query)])


def _log_sum_exp_(scores: Tensor, dim: int) -> Tensor:
    """`torch.logsumexp` in the memory of finite scores, which are lost."""
    largest = scores.amax(dim, keepdim=True)
    return scores.sub_(largest).exp_().sum(dim).log_().add_(largest.squeeze(dim))


class _OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, offset: int, chunk: int) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            rows, space = query.new_empty(len(query)), _space(query, key, chunk)
            for start in range(0, len(query), chunk):
                part = slice(start, start + chunk)
                rows[part] = _log_sum_exp_(_scores(query[part], key, space), 1)
            own = (query * key[offset : offset + len(query)]).sum(-1)
        ctx.save_for_backward(query, key, rows)
        ctx.offset, ctx.chunk = offset, chunk
        return (own - rows).mean() + math.log(len(key))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, rows = ctx.saved_tensors
        own = slice(ctx.offset, ctx.offset + len(query))
        with torch.autocast(query.device.type, enabled=False):
            grad_query, grad_key = key[own].clone(), torch.zeros_like(key)
            grad_key[own] = query
            space = _space(query, key, ctx.chunk)
            for start in range(0, len(query), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                share = _scores(query[part], key, space).sub_(rows[part, None]).exp_()
                grad_query[part].addmm_(share, key, alpha=-1)
                grad_key.addmm_(share.T, query[part], alpha=-1)
            scale = grads[0] / len(query)
        return grad_query * scale, grad_key * scale, None, None


class _Symmetric(torch.autograd.Function):
    """Both directions in one pass over the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, chunk: int) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            rows = query.new_empty(len(query))
            columns = query.new_full((len(key),), -math.inf)
            space, copy = _space(query, key, chunk), _space(query, key, chunk)
            for start in range(0, len(query), chunk):
                part = slice(start, start + chunk)
                scores = _scores(query[part], key, space)
                rows[part] = _log_sum_exp_(copy[: len(scores)].copy_(scores), 1)
                columns = torch.logaddexp(columns, _log_sum_exp_(scores, 0))
            own = (query * key).sum(-1)
        ctx.save_for_backward(query, key, rows, columns)
        ctx.chunk = chunk
        return (own - 0.5 * (rows + columns)).mean() + math.log(len(key))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, rows, columns = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            grad_query, grad_key = key.clone(), query.clone()
            space, copy = _space(query, key, ctx.chunk), _space(query, key, ctx.chunk)
            for start in range(0, len(query), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                scores = _scores(query[part], key, space)
                share = copy[: len(scores)].copy_(scores).sub_(rows[part, None]).exp_()
                share += scores.sub_(columns).exp_()
                grad_query[part].addmm_(share, key, alpha=-0.5)
                grad_key.addmm_(share.T, query[part], alpha=-0.5)
            scale = grads[0] / len(query)
        return grad_query * scale, grad_key * scale, None

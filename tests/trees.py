"""Comparing trees of tensors bit by bit."""

from typing import Any

import torch
from torch import Tensor


def assert_same(a: Any, b: Any, where: str = "tree") -> None:
    """Equal structure, types, dtypes and bits."""
    assert type(a) is type(b), (where, type(a), type(b))
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert a.shape == b.shape, where
        assert torch.equal(a.nan_to_num(nan=1.5e30), b.nan_to_num(nan=1.5e30)), where
    elif isinstance(a, dict):
        assert list(a) == list(b), (where, list(a), list(b))
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, (where, a, b)

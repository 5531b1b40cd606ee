"""Transition memory: one packed row per transition, in one tensor per dtype on one device.

Sampling is a single gather, which is what makes it fast (see `benchmarks/`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Replay:
    """A ring of the last `capacity` steps of N environments.

    Args:
        fields: name -> (shape of one environment's value, dtype).
        capacity: steps kept.
        num_envs: N.
        device: where the rows live.
    """

    def __init__(
        self,
        fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        capacity: int,
        num_envs: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: expected at least 1 step")
        self.capacity, self.num_envs, self.device = capacity, num_envs, torch.device(device)
        self.position, self.full = 0, False
        self._columns: dict[str, tuple[torch.dtype, slice, tuple[int, ...]]] = {}
        widths: dict[torch.dtype, int] = {}
        for name, (shape, dtype) in fields.items():
            start = widths.get(dtype, 0)
            widths[dtype] = start + math.prod(shape)
            self._columns[name] = (dtype, slice(start, widths[dtype]), tuple(shape))
        self._rows = {
            dtype: torch.zeros(capacity, num_envs, width, dtype=dtype, device=self.device)
            for dtype, width in widths.items()
        }

    def __len__(self) -> int:
        """Transitions stored."""
        return (self.capacity if self.full else self.position) * self.num_envs

    def add(self, **values: Tensor) -> None:
        """Store one step: every field's value, [N, *shape].

        Raises:
            ValueError: a field is missing or unknown, or has the wrong shape.
        """
        if values.keys() != self._columns.keys():
            raise ValueError(f"replay: expected {sorted(self._columns)}, got {sorted(values)}")
        for name, (dtype, columns, shape) in self._columns.items():
            value = values[name]
            if value.shape != (self.num_envs, *shape):
                raise ValueError(
                    f"replay field {name!r}: expected shape {(self.num_envs, *shape)}, "
                    f"got {tuple(value.shape)}"
                )
            self._rows[dtype][self.position, :, columns] = value.reshape(self.num_envs, -1)
        self.position += 1
        if self.position == self.capacity:
            self.position, self.full = 0, True

    def sample(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Uniform transitions with replacement, [batch_size, *shape] each."""
        if not len(self):
            raise ValueError("replay: nothing to sample from")
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.device)
        return self._unpack(
            {k: v.flatten(0, 1).index_select(0, index) for k, v in self._rows.items()}
        )

    def steps(self) -> dict[str, Tensor]:
        """Everything stored, oldest step first, [T, N, *shape] each."""
        if self.full and self.position:
            rows = {k: v.roll(-self.position, 0) for k, v in self._rows.items()}
        else:
            last = self.capacity if self.full else self.position
            rows = {k: v[:last] for k, v in self._rows.items()}
        return self._unpack(rows)

    def clear(self) -> None:
        """Forget everything."""
        self.position, self.full = 0, False

    def _unpack(self, rows: Mapping[torch.dtype, Tensor]) -> dict[str, Tensor]:
        return {
            name: rows[dtype][..., columns].reshape(*rows[dtype].shape[:-1], *shape)
            for name, (dtype, columns, shape) in self._columns.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The rows written so far (views, as torch modules give) and the write position."""
        last = self.capacity if self.full else self.position
        rows = {str(k): v[:last] for k, v in self._rows.items()}
        return {"position": self.position, "full": self.full, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the rows belong to other fields, capacity or number of environments.
        """
        for dtype, rows in self._rows.items():
            saved = state["rows"].get(str(dtype))
            if saved is None or saved.shape[1:] != rows.shape[1:] or len(saved) > self.capacity:
                raise ValueError(
                    f"replay rows {dtype}: expected at most {tuple(rows.shape)}, "
                    f"got {None if saved is None else tuple(saved.shape)}"
                )
            rows[: len(saved)] = saved
        self.position, self.full = state["position"], state["full"]

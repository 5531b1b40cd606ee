"""Transition memory: one packed row per transition, in one tensor per dtype.

Sampling is a single gather, which is what makes it fast (see `benchmarks/`).

Shape letters: N environments, T time, B batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from agents.core.structure import require_like

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> (shape of one environment's value, dtype)."""


class Replay:
    """A ring of the last `capacity` steps of N environments.

    With a `path` the rows lie in that file, mapped into memory, so that they may be more than fit;
    what is sampled goes to `device`. A checkpoint then holds the position only, and the file goes
    on being written after it. So that the very rows of the checkpoint can still be found, the ring
    in the file has room for `slack` steps more than are ever sampled: a run that resumes from a
    checkpoint at most `slack` steps old continues exactly, and one whose rows are gone is refused.
    A new replay begins the file anew with its first `add`; `Replay.open` reads what is there.

    Args:
        fields: see `Fields`.
        capacity: steps kept.
        num_envs: N.
        device: where the rows live, or where samples go.
        path: of a file, created if there is none.
        slack: steps between two checkpoints of a run, at least; with a `path`.

    Raises:
        ValueError: a capacity below 1, or the file at `path` is not one of this description.
    """

    def __init__(
        self,
        fields: Fields,
        capacity: int,
        num_envs: int,
        device: torch.device | str = "cpu",
        path: str | Path | None = None,
        slack: int | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: expected at least 1 step")
        if slack is not None and (path is None or slack < 0):
            raise ValueError(f"slack={slack}: expected at least 0 steps, and a path")
        self.capacity, self.num_envs, self.device = capacity, num_envs, torch.device(device)
        self.position, self.full = 0, False
        self._length = capacity  # of the ring
        if path is not None:
            self._length += -(-capacity // 8) if slack is None else slack
        self._columns: dict[str, tuple[torch.dtype, slice, tuple[int, ...]]] = {}
        widths: dict[torch.dtype, int] = {}
        for name, (shape, dtype) in fields.items():
            start = widths.get(dtype, 0)
            widths[dtype] = start + math.prod(shape)
            self._columns[name] = (dtype, slice(start, widths[dtype]), tuple(shape))
        # How a packed row of each dtype splits into fields: their sizes, names and shapes.
        self._split: dict[torch.dtype, tuple[list[int], list[tuple[str, tuple[int, ...]]]]] = {}
        for name, (dtype, columns, shape) in self._columns.items():
            sizes, named = self._split.setdefault(dtype, ([], []))
            sizes.append(columns.stop - columns.start)
            named.append((name, shape))
        for dtype, (sizes, _) in self._split.items():
            sizes.append(_padded(widths[dtype], dtype) - widths[dtype])
        self._episodes: tuple[str, Tensor] | None = None  # see `_find_episodes`
        self._widths = widths
        shapes = {k: (self._length, num_envs, _padded(width, k)) for k, width in widths.items()}
        self._file: RowFile | None = None
        if path is None:
            self._rows = {
                dtype: torch.zeros(shape, dtype=dtype, device=self.device)
                for dtype, shape in shapes.items()
            }
        else:
            kinds = {n: [list(s), str(d).removeprefix("torch.")] for n, (s, d) in fields.items()}
            sizes = {"capacity": capacity, "length": self._length, "num_envs": num_envs}
            self._file = RowFile(Path(path), {"fields": kinds, **sizes}, shapes)
            self._rows = self._file.rows
        self._flat = {dtype: rows.flatten(0, 1) for dtype, rows in self._rows.items()}

    def __len__(self) -> int:
        """Transitions stored."""
        return self._steps() * self.num_envs

    def add(self, **values: Tensor) -> None:
        """Store one step: every field's value, [N, *shape].

        Raises:
            ValueError: a field is missing or unknown, or has the wrong shape.
        """
        if values.keys() != self._columns.keys():
            raise ValueError(f"replay: expected {sorted(self._columns)}, got {sorted(values)}")
        if self._file is not None:
            self._file.before_writing()
        for name, (dtype, columns, shape) in self._columns.items():
            value = values[name]
            if value.shape != (self.num_envs, *shape):
                raise ValueError(
                    f"replay field {name!r}: expected shape {(self.num_envs, *shape)}, "
                    f"got {tuple(value.shape)}"
                )
            self._rows[dtype][self.position, :, columns] = value.reshape(self.num_envs, -1)
        self._episodes = None
        self.position += 1
        if self._file is not None:
            self._file.count()
        if self.position == self._length:
            self.position, self.full = 0, True

    def end(self, done: str, value: int) -> None:
        """Put `value` into the field `done` of every environment's last step, where it is 0."""
        if not len(self):
            return
        if self._file is not None:
            self._file.before_writing()
        dtype, columns, _ = self._columns[done]
        last = self._rows[dtype][self.position - 1, :, columns]
        last[last == 0] = value
        self._episodes = None

    # ---- reading

    def sample(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Uniform transitions with replacement, [batch_size, *shape] each."""
        if not len(self):
            raise ValueError("replay: nothing to sample from")
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.device)
        if self._file is not None:  # some of its rows are not to be sampled
            index = self._place(index)
        return self._unpack(self._gather(index))

    def sample_sequences(
        self, batch_size: int, length: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Uniform windows of `length` consecutive steps, [batch_size, length, *shape] each.

        A window is of one environment and never crosses the write position. It may cross the end of
        an episode: store a flag (`done`, or `is_first`) to see where.

        Raises:
            ValueError: fewer than `length` steps are stored.
        """
        starts = self._steps() - length + 1
        if length < 1 or starts < 1:
            raise ValueError(f"length={length}: expected 1 .. {self._steps()}, the steps stored")
        count = starts * self.num_envs
        index = torch.randint(count, (batch_size, 1), generator=generator, device=self.device)
        index = index + torch.arange(length, device=self.device) * self.num_envs
        return self._unpack(self._gather(self._place(index)))

    def sample_episodes(
        self,
        batch_size: int,
        generator: torch.Generator,
        done: str = "done",
        length: int | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Uniform whole episodes, zero after their end, and which steps are theirs.

        Episodes that have not ended yet, or whose beginning was overwritten, are left out. The
        first step ever stored counts as the beginning of one. Episodes are looked up when something
        was stored since the last call, which waits for a GPU.

        Args:
            batch_size: B, with replacement.
            generator: decides which.
            done: the field, without axes, that is not 0 in the last step of an episode.
            length: T; None takes the longest of the sampled episodes, which waits for a GPU.

        Returns:
            [B, T, *shape] each, and a mask bool [B, T].

        Raises:
            ValueError: no such field, no whole episode, or one longer than `length`.
        """
        episodes = self._find_episodes(done)
        if not len(episodes):
            raise ValueError("replay: no whole episode to sample from")
        chosen = torch.randint(
            len(episodes), (batch_size,), generator=generator, device=self.device
        )
        first, steps = episodes[chosen].unbind(-1)
        if length is None:
            length = int(steps.max())
        elif int(episodes[:, 1].max()) > length:
            raise ValueError(f"length={length}: an episode has {int(episodes[:, 1].max())} steps")
        time = torch.arange(length, device=self.device)
        mask = time < steps[:, None]
        index = first[:, None] + time.minimum(steps[:, None] - 1) * self.num_envs
        rows = self._gather(self._place(index))
        rows = {k: v.masked_fill(~mask[..., None], 0) for k, v in rows.items()}
        return self._unpack(rows), mask

    def count_episodes(self, done: str = "done") -> int:
        """Whole episodes that `sample_episodes` draws from."""
        return len(self._find_episodes(done))

    def steps(self) -> dict[str, Tensor]:
        """Everything stored, oldest step first, [T, N, *shape] each."""
        oldest, last = self._oldest(), self._oldest() + self._steps()
        if last > self._length:
            rows = {
                k: torch.cat([v[oldest:], v[: last - self._length]]) for k, v in self._rows.items()
            }
        else:
            rows = {k: v[oldest:last] for k, v in self._rows.items()}
        return self._unpack({k: v.to(self.device) for k, v in rows.items()})

    def clear(self) -> None:
        """Forget everything."""
        self.position, self.full, self._episodes = 0, False, None
        if self._file is not None:
            self._file.begin()

    def _steps(self) -> int:
        return self.capacity if self.full else min(self.position, self.capacity)

    def _oldest(self) -> int:
        return (self.position - self._steps()) % self._length

    def _place(self, index: Tensor) -> Tensor:
        """Rows in the ring of rows counted from the oldest step."""
        oldest = self._oldest()
        return (
            (index + oldest * self.num_envs) % (self._length * self.num_envs) if oldest else index
        )

    def _gather(self, index: Tensor) -> dict[torch.dtype, Tensor]:
        flat = index.flatten() if index.dim() > 1 else index
        flat = flat if self._file is None else flat.cpu()
        rows = {k: v.index_select(0, flat) for k, v in self._flat.items()}
        if index.dim() > 1:
            rows = {k: v.unflatten(0, index.shape) for k, v in rows.items()}
        return rows if self._file is None else {k: v.to(self.device) for k, v in rows.items()}

    def _unpack(self, rows: Mapping[torch.dtype, Tensor]) -> dict[str, Tensor]:
        """Views of packed rows [..., width], by field [..., *shape]."""
        fields = dict.fromkeys(self._columns)  # in the order in which they were declared
        for dtype, (sizes, named) in self._split.items():
            parts = rows[dtype].split_with_sizes(sizes, -1)
            for (name, shape), part in zip(named, parts, strict=False):  # the last is padding
                if len(shape) != 1:
                    part = part.unflatten(-1, shape) if shape else part.squeeze(-1)
                fields[name] = part
        return fields  # type: ignore[return-value]

    def _find_episodes(self, done: str) -> Tensor:
        """First row (counted from the oldest step) and steps of whole episodes, int64 [K, 2]."""
        if self._episodes is None or self._episodes[0] != done:
            if done not in self._columns or self._columns[done][2]:
                raise ValueError(f"replay: expected a field {done!r} without axes")
            dtype, columns, _ = self._columns[done]
            ring = self._rows[dtype][..., columns.start]
            time = (torch.arange(self._steps(), device=ring.device) + self._oldest()) % self._length
            row, end = (ring[time] != 0).T.nonzero().unbind(-1)  # by environment, then by time
            before = end.roll(1)
            whole = row == row.roll(1)  # the environment has had another end before
            whole[:1] = False
            known = not self.full and self.position <= self.capacity  # its first step is the first
            start = torch.where(whole, before + 1, 0)
            keep = whole | known
            found = torch.stack([start * self.num_envs + row, end - start + 1], -1)[keep]
            self._episodes = done, found.to(self.device)
        return self._episodes[1]

    # ---- saving

    def state_dict(self) -> dict[str, Any]:
        """The rows written so far (views, as torch modules give) and the write position.

        Of a replay with a `path` only the position, and what says whether the file still has its
        rows; the file is flushed to its disk.
        """
        state: dict[str, Any] = {"position": self.position, "full": self.full}
        if self._file is not None:
            return state | self._file.state_dict()
        last = self.capacity if self.full else self.position
        rows = {str(k): self._rows[k][:last, :, :width] for k, width in self._widths.items()}
        return state | {"rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the rows belong to other fields, capacity or number of environments; or the
                file does not have them any more.
        """
        saved_rows, position, full = state.get("rows", {}), state["position"], state["full"]
        if type(position) is not int or type(full) is not bool:
            raise ValueError(f"replay position {position!r}, full {full!r}"[:200])
        if self._file is not None:
            self._file.load_state_dict(state)
        if not 0 <= position < self._length:
            raise ValueError(f"replay position {position}, expected less than {self._length}")
        steps = self.capacity if full else position
        for dtype, width in self._widths.items() if self._file is None else ():
            rows = self._rows[dtype][:steps, :, :width]
            require_like(saved_rows.get(str(dtype)), rows, f"replay rows {dtype}")
            rows.copy_(saved_rows[str(dtype)])
        self.position, self.full, self._episodes = position, full, None

    @classmethod
    def open(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """The replay whose rows are in the file at `path`, as it was last written.

        Raises:
            ValueError: there is no such file, or it is none of a replay's.
        """
        layout = RowFile.read_layout(Path(path))
        if layout is None:
            raise ValueError(f"{path}: no such file")
        fields = {n: (tuple(s), getattr(torch, d)) for n, (s, d) in layout["fields"].items()}
        slack = layout["length"] - layout["capacity"]
        replay = cls(fields, layout["capacity"], layout["num_envs"], device, path, slack)
        assert replay._file is not None
        written = replay._file.go_on()
        replay.position, replay.full = written % layout["length"], written >= layout["length"]
        return replay


def _padded(width: int, dtype: torch.dtype) -> int:
    """`width`, or that of whole cache lines of 64 bytes where these are at most a quarter more.

    A row that begins with a cache line is gathered faster (measured: 42 floats, 18 %).
    """
    line = 64 // dtype.itemsize
    whole = -(-width // line) * line
    return whole if whole <= 1.25 * width else width


class RowFile:
    """Rows of a replay in a file that is mapped into memory, and that outlives the process.

    Before the rows lie a JSON description and two counters: the steps written, and the most that
    ever were (a run that resumes from a checkpoint writes some of them again).

    Args:
        path: of the file, created if there is none.
        layout: describes the replay, in JSON's types.
        shapes: of the rows of each dtype.

    Attributes:
        rows: by dtype, views of the file.

    Raises:
        ValueError: the file holds something else.
    """

    _HEADER = 65536  # bytes before the rows

    def __init__(
        self, path: Path, layout: dict[str, Any], shapes: dict[torch.dtype, tuple[int, ...]]
    ) -> None:
        self.path, self._layout, self._continues = path, layout, False
        sizes = {k: -(-math.prod(s) * k.itemsize // 64) * 64 for k, s in shapes.items()}
        size = self._HEADER + sum(sizes.values())
        found = self.read_layout(path)
        if found is None:
            with path.open("xb") as file:
                file.truncate(size)  # sparse: takes no space before it is written
        else:
            self._id = found.pop("id")
            wrong = next((name for name in layout if found.get(name) != layout[name]), None)
            if wrong is not None:
                raise ValueError(
                    f"{path}: a replay with {wrong}={found.get(wrong)}, expected {layout[wrong]}"
                )
            if path.stat().st_size != size:
                raise ValueError(f"{path}: {path.stat().st_size} bytes, expected {size}")
        self._bytes = np.memmap(path, np.uint8, "r+")
        self._steps = self._bytes[self._HEADER - 16 : self._HEADER].view(np.int64)
        self.rows, start = {}, self._HEADER
        for dtype, shape in shapes.items():
            block = self._bytes[start : start + math.prod(shape) * dtype.itemsize]
            self.rows[dtype] = torch.from_numpy(block).view(dtype).view(shape)
            start += sizes[dtype]
        if found is None:
            self.begin()

    def begin(self) -> None:
        """Start anew: no earlier checkpoint finds its rows any more."""
        self._id, self._continues = os.urandom(8).hex(), True
        text = json.dumps({**self._layout, "id": self._id}).encode()
        if len(text) > self._HEADER - 16:
            raise ValueError(f"{self.path}: the fields' description is too long")
        self._bytes[: self._HEADER - 16] = np.frombuffer(text.ljust(self._HEADER - 16), np.uint8)
        self._steps[:] = 0

    def go_on(self) -> int:
        """Keep what is there; the number of steps written."""
        self._continues = True
        return int(self._steps[0])

    def count(self) -> None:
        """One step has been written."""
        self._steps[0] += 1
        self._steps[1] = max(self._steps)

    def before_writing(self) -> None:
        """Start anew unless a checkpoint was loaded."""
        if not self._continues:
            self.begin()

    def state_dict(self) -> dict[str, Any]:
        """Which writing of the file this is, and how far it got."""
        self._bytes.flush()
        return {"id": self._id, "written": int(self._steps[0])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, if its rows have not been overwritten since."""
        if state.get("id") != self._id:
            raise ValueError(f"replay file {self.path}: written anew since that checkpoint")
        written, newest = state["written"], int(self._steps[1])
        if type(written) is not int or not 0 <= written <= newest:
            got = repr(written)[:50]
            raise ValueError(f"replay file {self.path}: expected 0 .. {newest} steps, got {got}")
        oldest = written - min(written, self._layout["capacity"])
        if newest - self._layout["length"] > oldest:
            raise ValueError(
                f"replay file {self.path}: {newest - written} steps were written since that "
                f"checkpoint, more than slack={self._layout['length'] - self._layout['capacity']}"
            )
        length = self._layout["length"]
        if (written >= length, written % length) != (state["full"], state["position"]):
            raise ValueError(f"replay file {self.path}: {written} steps end elsewhere")
        self._steps[0], self._continues = written, True

    @classmethod
    def read_layout(cls, path: Path) -> dict[str, Any] | None:
        """The description in the file, or None without a file.

        Raises:
            ValueError: the file is none of a replay's.
        """
        if not path.exists():
            return None
        with path.open("rb") as file:
            text = file.read(cls._HEADER - 16)
        try:
            layout = json.loads(text)
            assert {"fields", "capacity", "length", "num_envs", "id"} <= layout.keys()
            assert all(
                isinstance(getattr(torch, kind), torch.dtype)
                for _, kind in layout["fields"].values()
            )
        except (ValueError, AssertionError, AttributeError, TypeError):
            raise ValueError(f"{path}: not the file of a replay") from None
        return layout

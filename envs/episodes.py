"""Episodes on disk: Minari datasets, and HDF5 files as D4RL and d3rlpy write them.

Minari's own reader imports whatever module a dataset's metadata names in order to learn its spaces,
and reads arrays without looking; this one does neither.

Shape letters: T steps, D observation features, U action features.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import h5py
import numpy as np

from envs.hdf5 import CHUNK_BYTES, MAX_BYTES, DataError, SafeFile

_JSON_BYTES = 16 << 20
_ONE_HOT = 4096
"""Most values of a discrete observation, which is read as one-hot."""
_DTYPES = (
    "float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64",
    "int8", "int16", "int32", "int64", "bool",
)  # fmt: skip
_LARGEST = 2**62
"""Of a space's integers: sums of two are numbers of int64."""


@dataclass
class Episode:
    """One episode; `extras` are what its writer knew of it."""

    states: np.ndarray
    """[T + 1, D]: every observation, its last one included."""
    actions: np.ndarray
    """float32 [T, U] or int64 [T]"""
    rewards: np.ndarray
    """float32 [T]"""
    terminations: np.ndarray
    """bool [T]"""
    velocity: np.ndarray
    """float32 [T, V]"""
    extras: dict[str, int] = field(default_factory=dict)
    """`behaviour`, `checkpoint`"""


# ---- Minari


def read_json(file: Path) -> dict[str, Any]:
    """The metadata of a Minari dataset or namespace.

    Raises:
        DataError: it is not a dictionary in JSON.
    """
    try:
        if file.stat().st_size > _JSON_BYTES:
            raise DataError(file, "", f"at most {_JSON_BYTES} bytes", file.stat().st_size)
        metadata = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(file, "", "metadata in JSON", error) from None
    if not isinstance(metadata, dict):
        raise DataError(file, "", "a dictionary", type(metadata).__name__)
    return metadata


def read_minari(path: Path, max_bytes: int = MAX_BYTES) -> tuple[dict[str, Any], list[Episode]]:
    """Metadata and episodes of the Minari dataset whose `metadata.json` is in `path`.

    Boxes and MultiBinary are read as they are, discrete observations as one-hot, and dictionaries
    and tuples joined in Gymnasium's order, as its `flatten` has it. Not read are other spaces
    (Text, Graph, Sequence), images stored as JPEG, and `data_format="arrow"`.

    Raises:
        DataError: the files are not plain data of the spaces they declare.
    """
    metadata = read_json(path / "metadata.json")
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise DataError(path, "data_format", "'hdf5'", repr(metadata["data_format"]))
    spaces = [_space(path, metadata, name) for name in ("observation_space", "action_space")]
    with SafeFile(path / "main_data.hdf5", max_bytes) as file:
        names = [name for name in file.names() if re.fullmatch(r"episode_\d{1,9}", name)]
        count = metadata.get("total_episodes", len(names))
        if count != len(names):
            raise DataError(path / "main_data.hdf5", "", f"{count!r} episodes", len(names))
        names.sort(key=lambda name: int(name.removeprefix("episode_")))
        ours = "family" in metadata
        return metadata, [_minari_episode(file, name, *spaces, ours=ours) for name in names]


def _minari_episode(file: SafeFile, name: str, observed: Any, acted: Any, ours: bool) -> Episode:
    """`ours`: what else is there is what `write_minari` writes; of others' it may be anything."""
    rewards = file.read(f"{name}/rewards", (None,))
    steps = len(rewards)
    if not steps:
        raise DataError(file.path, f"{name}/rewards", "at least one step", 0)
    terminations = file.read(f"{name}/terminations", (steps,), "bui").astype(bool)
    if terminations[:-1].any():
        where = int(terminations.argmax())
        raise DataError(file.path, f"{name}/terminations", "an end at the last step", where)
    velocity = np.zeros((steps, 0), np.float32)
    if ours and "infos" in file.names(name) and "velocity" in file.names(f"{name}/infos"):
        velocity = file.read(f"{name}/infos/velocity", (steps + 1, None), "f")[1:]
    extras = {key: file.integer(name, key) for key in ("behaviour", "checkpoint") if ours}
    return Episode(
        _read_space(file, f"{name}/observations", steps + 1, observed, one_hot=True),
        _read_space(file, f"{name}/actions", steps, acted, one_hot=False),
        rewards.astype(np.float32),
        terminations,
        velocity.astype(np.float32),
        {key: value for key, value in extras.items() if value is not None},
    )


def _space(path: Path, metadata: dict[str, Any], name: str) -> dict[str, Any]:
    """A space that a dataset declares, checked but not made: making one may allocate anything."""
    file, text = path / "metadata.json", metadata.get(name)
    if not isinstance(text, str):
        raise DataError(file, name, "a space", text)
    try:
        space = json.loads(text)
        _check_space(file, name, space, metadata.get("jpeg_encoding", True))
    except (ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, DataError) else DataError(file, name, "JSON", error)
        ) from None
    return space


def _check_space(file: Path, name: str, space: Any, jpeg: bool) -> None:
    kind = space.get("type") if isinstance(space, dict) else None
    if kind in ("Dict", "Tuple"):
        parts = space.get("subspaces")
        wanted = dict if kind == "Dict" else list
        if not isinstance(parts, wanted) or not parts:
            raise DataError(file, f"{name}.subspaces", f"a {wanted.__name__} of spaces", parts)
        for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
            _check_space(file, f"{name}.{key}", part, jpeg)
    elif kind == "Box":
        shape, dtype = space.get("shape"), space.get("dtype")
        if dtype not in _DTYPES:
            raise DataError(file, f"{name}.dtype", f"one of {', '.join(_DTYPES)}", dtype)
        if not _integers(shape, 0):
            raise DataError(file, f"{name}.shape", "sizes", shape)
        if jpeg and dtype == "uint8" and len(shape) == 3 and shape[2] in (1, 3, 4):
            raise DataError(file, name, "arrays (write it with jpeg_encoding=False)", "JPEG images")
    elif kind == "Discrete":
        count, start = _choices(space)
        if not _integers([count], 1) or not _integers([start], -_LARGEST):
            raise DataError(file, name, "integers n and start", (count, start))
    elif kind == "MultiDiscrete":
        counts, starts = _choices(space)
        if not _integers(counts, 1) or not counts:
            raise DataError(file, f"{name}.nvec", "a list of sizes", counts)
        if not _integers(starts, -_LARGEST) or len(starts) != len(counts):
            raise DataError(file, f"{name}.start", f"{len(counts)} integers", starts)
    elif kind == "MultiBinary":
        if not _integers([space.get("n")], 1) and not _integers(space.get("n"), 1):
            raise DataError(file, f"{name}.n", "sizes", space.get("n"))
    else:
        known = "Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
        raise DataError(file, name, known, kind or space)


def _integers(values: Any, low: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(n) is int and low <= n < _LARGEST for n in values)


def _choices(space: dict[str, Any]) -> tuple[Any, Any]:
    """How many values a discrete space or each of several has, and the first of them."""
    if space["type"] == "Discrete":
        return space.get("n"), space.get("start", 0)
    counts = space.get("nvec")
    return counts, space.get("start") or ([0] * len(counts) if isinstance(counts, list) else None)


def _read_space(
    file: SafeFile, name: str, length: int, space: dict[str, Any], one_hot: bool
) -> np.ndarray:
    """[length, ...] of a space: float32, uint8 images, or int64 for discrete actions."""
    kind = space["type"]
    if kind in ("Dict", "Tuple"):
        parts = space["subspaces"]
        named = sorted(parts.items()) if kind == "Dict" else enumerate(parts)
        prefix = f"{name}/" if kind == "Dict" else f"{name}/_index_"
        columns = [_read_space(file, f"{prefix}{k}", length, p, True) for k, p in named]
        return np.concatenate([c.reshape(length, -1).astype(np.float32) for c in columns], 1)
    if kind == "MultiBinary":
        shape = space["n"] if isinstance(space["n"], list) else [space["n"]]
        return file.read(name, (length, *shape), "iub").astype(np.float32)
    if kind == "Box":
        shape = tuple(space["shape"])
        value = file.read(name, (length, *shape), np.dtype(space["dtype"]).kind)
        value = value if value.dtype == np.uint8 and len(shape) == 3 else value.astype(np.float32)
        return value if shape else value[:, None]
    count, low = map(np.asarray, _choices(space))
    value = file.read(name, (length, *count.shape), "iu").astype(np.int64)
    outside = (value < low) | (value >= low + count)
    if outside.any():
        raise DataError(file.path, name, f"{low} .. {low + count - 1}", value[outside][0])
    if not one_hot:
        return value
    width = int(count.sum(dtype=object))
    if width > _ONE_HOT:
        raise DataError(file.path, name, f"at most {_ONE_HOT} values to tell apart", width)
    file.claim(name, 4 * length * width)
    hot = np.zeros((length, width), np.float32)
    column = (value - low + count.cumsum().reshape(count.shape) - count).reshape(length, -1)
    np.put_along_axis(hot, column, 1, 1)
    return hot


def write_minari(
    path: Path,
    metadata: dict[str, Any],
    env_spec: Any,
    spaces: tuple[Any, Any],
    episodes: Sequence[Episode],
) -> None:
    """Write a Minari dataset into the new directory `path` (`metadata.json` and `main_data.hdf5`).

    Args:
        path: its `data` directory.
        metadata: Minari's and one's own keys; strings and numbers.
        env_spec: gymnasium `EnvSpec` whose `kwargs` say what the task is.
        spaces: of observations and actions.
        episodes: the data.
    """
    from minari.dataset.minari_storage import MinariStorage

    path = path.absolute()  # Minari cannot measure the size of a relative one
    path.mkdir(parents=True)
    storage = MinariStorage.new(path, *spaces, env_spec=env_spec)
    # Minari's own writer makes every array growable, which takes 4 times the space and the time.
    # The newer layout has checksums of its own tables, `fletcher32` gives the numbers theirs.
    file = h5py.File(path / "main_data.hdf5", "w", track_order=True, libver=("v110", "v110"))
    with file:
        for i, episode in enumerate(episodes):
            _write_episode(file.create_group(f"episode_{i}"), i, episode)
    storage.update_metadata(
        {
            **metadata,
            "total_episodes": len(episodes),
            "total_steps": sum(len(episode.rewards) for episode in episodes),
            "dataset_size": float(storage.get_size()),
        }
    )


def _write_episode(group: h5py.Group, i: int, episode: Episode) -> None:
    truncations = np.zeros(len(episode.rewards), bool)
    truncations[-1] = not episode.terminations[-1]
    arrays = {
        "observations": episode.states,
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": episode.terminations,
        "truncations": truncations,
    }
    if episode.velocity.shape[1]:  # Minari's infos begin with the reset's
        arrays["infos/velocity"] = np.concatenate([0 * episode.velocity[:1], episode.velocity])
    for name, array in arrays.items():
        chunks = array.shape if array.nbytes <= CHUNK_BYTES else True
        group.create_dataset(name, data=array, chunks=chunks, fletcher32=True)
    total = float(episode.rewards.sum(dtype=np.float64))
    group.attrs.update(
        {"id": i, "total_steps": len(episode.rewards), "return": total, **episode.extras}
    )


# ---- D4RL and d3rlpy


def read_hdf5(path: Path, max_bytes: int = MAX_BYTES) -> list[Episode]:
    """Episodes of an HDF5 file as D4RL or d3rlpy writes it.

    D4RL, d3rlpy 1: rows `observations`, `actions`, `rewards`, `terminals` and, where given,
    `timeouts` (or `episode_terminals`) and `next_observations`. d3rlpy 2: `observations_0`,
    `actions_0`, `rewards_0`, `terminated_0`, and so on for every episode. Where nothing tells the
    successor of an episode's last step, that step is left out, unless it is terminal.

    Raises:
        DataError: the file is not plain data of this shape.
    """
    with SafeFile(path, max_bytes) as file:
        keys = set(file.names())
        if "observations_0" in keys:
            return [e for i in range(_count(keys)) if (e := _d3rlpy_episode(file, i))]
        return _flat_episodes(file, keys)


def _count(keys: set[str]) -> int:
    return sum(re.fullmatch(r"observations_\d+", key) is not None for key in keys)


def _d3rlpy_episode(file: SafeFile, i: int) -> Episode | None:
    rewards = file.read(f"rewards_{i}")
    steps = len(rewards) if rewards.ndim else 0
    if rewards.shape not in ((steps,), (steps, 1)):
        raise DataError(file.path, f"rewards_{i}", "shape (*,) or (*, 1)", rewards.shape)
    states = file.read(f"observations_{i}")
    actions = file.read(f"actions_{i}")
    _require_rows(file, steps, **{f"observations_{i}": states, f"actions_{i}": actions})
    ended = bool(file.read(f"terminated_{i}", (), "bui"))
    return _without_successor(states, _actions(actions), rewards.reshape(-1), ended)


def _flat_episodes(file: SafeFile, keys: set[str]) -> list[Episode]:
    rewards = file.read("rewards")
    if rewards.ndim == 2 and rewards.shape[1] == 1:
        rewards = rewards[:, 0]
    if rewards.ndim != 1 or not len(rewards):
        raise DataError(file.path, "rewards", "shape (*,)", rewards.shape)
    rows = len(rewards)
    observations, actions = file.read("observations"), file.read("actions")
    _require_rows(file, rows, observations=observations, actions=actions)
    terminals = file.read("terminals", (rows,)).astype(bool)
    ends = terminals.copy()
    for name in ("timeouts", "episode_terminals"):
        if name in keys:
            ends |= file.read(name, (rows,)).astype(bool)
    successors = None
    if "next_observations" in keys:
        successors = file.read("next_observations", observations.shape)
    ends[-1] = True
    episodes, start, actions = [], 0, _actions(actions)
    for end in np.flatnonzero(ends) + 1:
        part = slice(start, end)
        start, ended = end, bool(terminals[end - 1])
        if successors is None:
            episode = _without_successor(observations[part], actions[part], rewards[part], ended)
        else:
            states = np.concatenate([observations[part], successors[end - 1 : end]])
            episode = _episode(states, actions[part], rewards[part], ended)
        episodes += [episode] if episode else []
    return episodes


def _require_rows(file: SafeFile, rows: int, **arrays: np.ndarray) -> None:
    for name, value in arrays.items():
        if value.shape[:1] != (rows,):
            raise DataError(file.path, name, f"{rows} rows, as many as rewards", value.shape)


def _actions(actions: np.ndarray) -> np.ndarray:
    """float32 [T, U], or int64 [T] of integers."""
    if actions.dtype.kind in "iu":
        actions = actions[:, 0] if actions.ndim == 2 and actions.shape[1] == 1 else actions
        return actions.astype(np.int64)
    return actions.astype(np.float32).reshape(len(actions), math.prod(actions.shape[1:]))


def _without_successor(
    states: np.ndarray, actions: np.ndarray, rewards: np.ndarray, ended: bool
) -> Episode | None:
    """An episode that has as many observations as steps; None if nothing is left of it."""
    if ended and len(rewards):  # what follows a terminal step is never looked at
        return _episode(np.concatenate([states, states[-1:]]), actions, rewards, True)
    return _episode(states, actions[:-1], rewards[:-1], False) if len(rewards) > 1 else None


def _episode(states: np.ndarray, actions: np.ndarray, rewards: np.ndarray, ended: bool) -> Episode:
    terminations = np.zeros(len(rewards), bool)
    terminations[-1] = ended
    if states.dtype != np.uint8 or states.ndim != 4:  # images stay as they are
        states = states.astype(np.float32).reshape(len(states), math.prod(states.shape[1:]))
    velocity = np.zeros((len(rewards), 0), np.float32)
    return Episode(states, actions, rewards.astype(np.float32), terminations, velocity)

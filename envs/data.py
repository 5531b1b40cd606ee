"""Offline data of a family of tasks: one set of arrays [task, episode, step, ...].

    data = load("data/corro/point-robot")               # what `train.py data point-robot` wrote
    data.observations, data.next_observations           # float32 [K, E, T, D]
    data.actions, data.rewards, data.terminations       # [K, E, T, U], [K, E, T], bool [K, E, T]
    data.mask                                           # bool [K, E, T]: steps that happened
    data.tasks, data.task_ids                           # float32 [K, P], int64 [K]
    train, test = data.select("train"), data.select("test")
    batch = train.sample_transitions(tasks, 256, generator)    # tasks [M] -> {name: [M, 256, ...]}
    context = test.sample_episodes(tasks, 1, generator)        # {name: [M, 1, T, ...]}
    other = load("data/corro/point-robot", tier="ood")         # other tasks' policies in each task

`load` also reads a Minari dataset of others (by id or directory; which spaces `read_minari` says),
and HDF5 files as D4RL or d3rlpy write them, as one task. Files are refused before they are read
where they are not plain data of this shape (`envs.hdf5`).

On disk a family is a Minari namespace, `corro/<family>`, with one dataset for each task and tier:
`corro/<family>/task-003-mixed-v0`. `minari.load_dataset(id).recover_environment()` makes the task's
environment.

Shape letters: K tasks, E episodes, T steps, D observation features, U action features, P task
parameters, V velocity components, M tasks of a batch, B batch.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from envs.episodes import Episode, read_hdf5, read_json, read_minari, write_minari
from envs.hdf5 import MAX_BYTES, DataError

TIERS = ("random", "medium", "expert", "mixed", "ood")
"""Random actions; about half of the expert's return; the best policy's; all of a policy's training;
and what the policies of *other* tasks do in a task, as context out of distribution."""

DEFAULT_TIER = "mixed"


@dataclass
class TaskData:
    """Episodes of K tasks, padded to E episodes of T steps; see the top of this file.

    `states` holds every observation of an episode, its last one included; padding is zero.
    """

    states: Tensor
    """float32 [K, E, T + 1, D]"""
    actions: Tensor
    """float32 [K, E, T, U], or int64 [K, E, T] where actions are discrete."""
    rewards: Tensor
    """float32 [K, E, T]"""
    terminations: Tensor
    """bool [K, E, T]; the ends of episodes that ran out of time are none."""
    lengths: Tensor
    """Steps of each episode, int64 [K, E]; 0 where a task has fewer episodes."""
    behaviour: Tensor
    """The task whose policy acted, int64 [K, E]; -1 where nobody's did (random, unknown)."""
    checkpoint: Tensor
    """Which of that policy's checkpoints acted, from the first, int64 [K, E]; -1 likewise."""
    velocity: Tensor
    """What rewards are made of besides actions, float32 [K, E, T, V] [m/s]; V is 0 elsewhere."""
    tasks: Tensor
    """Task parameters, float32 [K, P]."""
    task_ids: Tensor
    """int64 [K]"""
    references: Tensor
    """Returns of a random and of the best known policy, float32 [K, 2]; NaN where unknown."""
    training: Tensor
    """Whether a task is for training rather than testing, bool [K]."""
    family: str = ""
    """Environment id."""
    tier: str = ""
    """One of `TIERS`, or "" of foreign data."""

    def __post_init__(self) -> None:
        tasks, episodes, states = self.states.shape[:3]
        step, episode, task = (tasks, episodes, states - 1), (tasks, episodes), (tasks,)
        real, whole, flag = (torch.float32,), (torch.int64,), (torch.bool,)
        expected = {
            "states": ((tasks, episodes, states), (*real, torch.uint8)),
            "actions": (step, real + whole),
            "rewards": (step, real),
            "terminations": (step, flag),
            "velocity": (step, real),
            "lengths": (episode, whole),
            "behaviour": (episode, whole),
            "checkpoint": (episode, whole),
            "tasks": (task, real),
            "task_ids": (task, whole),
            "references": ((tasks, 2), real),
            "training": (task, flag),
        }
        for name, (shape, dtypes) in expected.items():
            value = getattr(self, name)
            if tuple(value.shape[: len(shape)]) != shape:
                raise ValueError(f"{name}: expected shape ({shape}, ...), got {(*value.shape,)}")
            if value.dtype not in dtypes:
                raise ValueError(f"{name}: expected {dtypes[0]}, got {value.dtype}")
        if not bool(((self.lengths >= 0) & (self.lengths < states)).all()):
            raise ValueError(f"lengths: expected 0 .. {states - 1}")

    @classmethod
    def build(cls, states: Tensor, actions: Tensor, rewards: Tensor, **rest: Any) -> Self:
        """From arrays alone: whole episodes, one task each, nothing known of who acted.

        Args:
            states: [K, E, T + 1, D].
            actions: [K, E, T, U].
            rewards: [K, E, T].
            **rest: any other field.
        """
        tasks, episodes, steps = rewards.shape
        defaults = {
            "terminations": torch.zeros(tasks, episodes, steps, dtype=torch.bool),
            "lengths": torch.full((tasks, episodes), steps),
            "behaviour": torch.full((tasks, episodes), -1),
            "checkpoint": torch.full((tasks, episodes), -1),
            "velocity": torch.zeros(tasks, episodes, steps, 0),
            "tasks": torch.zeros(tasks, 0),
            "task_ids": torch.arange(tasks),
            "references": torch.full((tasks, 2), torch.nan),
            "training": torch.ones(tasks, dtype=torch.bool),
        }
        device = states.device
        filled = {name: value.to(device) for name, value in defaults.items() if name not in rest}
        return cls(states=states, actions=actions, rewards=rewards, **filled, **rest)

    # ---- reading

    @property
    def observations(self) -> Tensor:
        """[K, E, T, D], a view."""
        return self.states[:, :, :-1]

    @property
    def next_observations(self) -> Tensor:
        """[K, E, T, D], a view."""
        return self.states[:, :, 1:]

    @property
    def mask(self) -> Tensor:
        """Steps that happened, bool [K, E, T]."""
        steps = torch.arange(self.horizon, device=self.lengths.device)
        return steps < self.lengths[..., None]

    @property
    def returns(self) -> Tensor:
        """Sum of rewards of each episode, [K, E]."""
        return (self.rewards * self.mask).sum(2)

    @property
    def num_tasks(self) -> int:
        """K."""
        return self.states.shape[0]

    @property
    def num_episodes(self) -> int:
        """E."""
        return self.states.shape[1]

    @property
    def horizon(self) -> int:
        """T."""
        return self.states.shape[2] - 1

    def normalise(self, returns: Tensor) -> Tensor:
        """100 (R - R_random) / (R_best - R_random) per task, from returns [K, ...]."""
        low, high = self.references.view(self.num_tasks, 2, *[1] * (returns.dim() - 1)).unbind(1)
        return 100 * (returns - low) / (high - low)

    # ---- choosing

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._map(lambda value: value.to(device))

    def select(self, tasks: Literal["train", "test"] | Sequence[int] | Tensor) -> Self:
        """The tasks of a split, or those at the given positions in this set.

        Raises:
            ValueError: no task is left.
        """
        if isinstance(tasks, str):
            if tasks not in ("train", "test"):
                raise ValueError(f"select: expected 'train', 'test' or positions, got {tasks!r}")
            tasks = (self.training == (tasks == "train")).nonzero()[:, 0]
        index = torch.as_tensor(tasks, device=self.states.device)
        if not len(index):
            raise ValueError("select: no task is left")
        return self._map(lambda value: value[index])

    def _map(self, function: Any) -> Self:
        tensors = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)

    def sample_transitions(
        self, tasks: Tensor, count: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Uniform transitions of each task with replacement, {name: [M, count, ...]}.

        Args:
            tasks: positions of tasks in this set, int64 [M].
            count: transitions of each.
            generator: of the draws.

        Returns:
            observations, actions, rewards, next_observations, terminations (float32) and velocity.
        """
        ends = self.lengths.cumsum(1)[tasks]  # [M, E]
        unit = self._uniform(len(tasks), count, generator)
        draw = torch.minimum((unit * ends[:, -1:]).long(), ends[:, -1:] - 1)
        episode = torch.searchsorted(ends, draw, right=True)
        start = ends.gather(1, episode) - self.lengths[tasks].gather(1, episode)
        return self.gather(tasks[:, None], episode, draw - start)

    def sample_episodes(
        self, tasks: Tensor, count: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Uniform whole episodes of each task with replacement, {name: [M, count, T, ...]}.

        Args and returns as `sample_transitions`, and `mask` float32 [M, count, T].
        """
        available = (self.lengths > 0).sum(1)[tasks][:, None]  # padding comes last
        unit = self._uniform(len(tasks), count, generator)
        episode = torch.minimum((unit * available).long(), available - 1)[..., None]
        steps = torch.arange(self.horizon, device=available.device)
        batch = self.gather(tasks[:, None, None], episode, steps)
        return batch | {"mask": (steps < self.lengths[tasks[:, None, None], episode]).float()}

    def _uniform(self, tasks: int, count: int, generator: torch.Generator) -> Tensor:
        """float64, which tells more than 16 million transitions apart."""
        shape, device = (tasks, count), self.lengths.device
        return torch.rand(shape, generator=generator, device=device, dtype=torch.float64)

    def gather(self, task: Tensor, episode: Tensor, step: Tensor) -> dict[str, Tensor]:
        """The transitions at broadcast indices, {name: [..., *shape]}."""
        where = (task, episode, step)
        return {
            "observations": self.states[where],
            "actions": self.actions[where],
            "rewards": self.rewards[where],
            "next_observations": self.states[task, episode, step + 1],
            "terminations": self.terminations[where].float(),
            "velocity": self.velocity[where],
        }


# ---- loading


class MissingTierError(DataError):
    """A dataset that has nothing of this tier, whereas what it has may be sound."""


def load(
    source: str | Path,
    tier: str = DEFAULT_TIER,
    cache: bool = True,
    max_bytes: int = MAX_BYTES,
) -> TaskData:
    """The data of a family, or of one dataset.

    Args:
        source: a directory that `train.py data` wrote (the family's, or the one above if it holds
            one family); the id or directory of a Minari dataset; or an HDF5 file.
        tier: one of `TIERS`, of a family. One dataset is what it is: it is read by the default,
            and by the name of its own tier.
        cache: keep a family's arrays in `<family>/cache`, where that can be written, mapped into
            memory: reading is then at once, and takes no memory before it is used.
        max_bytes: what one file may declare, and what the arrays may take.

    Raises:
        MissingTierError: the data are not of this tier.
        DataError: there is no such data, or a file of it is refused.
    """
    path = _find(source)
    data = _load(path, tier, cache, max_bytes)
    if data.family:
        _require_family(data, path)
    return data


def _load(path: Path, tier: str, cache: bool, max_bytes: int) -> TaskData:
    if path.is_dir() and not (path / "metadata.json").exists():
        return _load_family(path, tier, cache, max_bytes)
    own = read_json(path / "metadata.json").get("tier") if path.is_dir() else None
    if tier not in (DEFAULT_TIER, own):
        raise MissingTierError(path, "tier", f"{own or DEFAULT_TIER!r} of a single dataset", tier)
    if path.is_file():
        return _join([read_hdf5(path, max_bytes)], [{}], path, max_bytes)
    metadata, episodes = read_minari(path, max_bytes)
    return _join([episodes], [metadata], path, max_bytes)


def _require_family(data: TaskData, path: Path) -> None:
    """That the environment the data name is a family of ours, and they are of its shapes."""
    from envs import ENVS, make

    make_family = ENVS.get(data.family)
    if make_family is None or "tasks" not in inspect.signature(make_family).parameters:
        raise DataError(path, "family", "a family of tasks such as ant-dir", data.family)
    env: Any = make(data.family, 1)
    expected = {
        "tasks": (len(env.task_names),),
        "states": env.single_observation_space.shape,
        "actions": env.single_action_space.shape,
        "velocity": (env.velocity_size,),
    }
    for name, shape in expected.items():
        there = tuple(getattr(data, name).shape[1 if name == "tasks" else 3 :])
        if there != shape:
            key = "task_params" if name == "tasks" else name
            raise DataError(path, key, f"shape {shape} of {data.family}", there)


def _find(source: str | Path) -> Path:
    """A file, the `data` directory of one dataset, or the directory of a family."""
    from minari.storage.datasets_root_dir import get_dataset_path

    if not str(source):
        raise DataError("dataset", "", "a directory, a file or a Minari id", "nothing")
    path = Path(source) if Path(source).exists() else get_dataset_path(str(source))
    if not path.exists():
        raise DataError(source, "", "a directory, a file or a local Minari id", "none of them")
    if path.is_file() or (path / "metadata.json").exists():
        return path
    if (path / "data" / "metadata.json").exists():
        return path / "data"
    if any(path.glob("task-*-v0")):
        return path
    families = sorted({found.parent for found in path.glob("**/task-*-v0")})
    if len(families) != 1:
        names = ", ".join(str(f.relative_to(path)) for f in families) or "none"
        raise DataError(path, "", "one dataset or one family of datasets", names)
    return families[0]


def _load_family(path: Path, tier: str, cache: bool, max_bytes: int) -> TaskData:
    pattern = re.compile(r"task-(\d{1,9})-(\w+)-v0")
    found = [(p / "data", m) for p in path.iterdir() if (m := pattern.fullmatch(p.name))]
    folders = {folder: int(m[1]) for folder, m in sorted(found) if m[2] == tier}
    if not folders:
        here = ", ".join(sorted({m[2] for _, m in found}))
        raise MissingTierError(path, "tier", f"one of {here}", tier)
    _require_tasks(path, tier, set(folders.values()))
    digest = hashlib.sha256()
    for file in (f / name for f in folders for name in ("metadata.json", "main_data.hdf5")):
        if not file.exists():
            raise DataError(file, "", "a file", "none")
        stat = file.stat()
        digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    store = path / "cache" / f"{tier}-{digest.hexdigest()[:16]}"
    if cache and store.exists():
        return _open(store)
    read = [read_minari(folder, max_bytes) for folder in folders]
    metadata, episodes = [facts for facts, _ in read], [episodes for _, episodes in read]
    data = _join(episodes, metadata, path, max_bytes)
    return _store(data, store) if cache else data


def _require_tasks(path: Path, tier: str, found: set[int]) -> None:
    """That a tier has every task the family is said to have: making data may be interrupted."""
    from minari.namespace import NAMESPACE_METADATA_FILENAME

    file = path / NAMESPACE_METADATA_FILENAME
    facts = read_json(file) if file.exists() else {}
    tasks: set[int] = set()
    for split in ("train", "test"):
        ids = facts.get(split, [])
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise DataError(file, split, "a list of task ids", ids)
        tasks |= set(ids)
    if tasks - found:
        missing = f"{len(tasks & found)}; issue the same `python train.py data` again to finish"
        raise DataError(path, f"tier {tier}", f"{len(tasks)} tasks", missing)


def _join(
    episodes: list[list[Episode]], metadata: list[dict[str, Any]], path: Path, max_bytes: int
) -> TaskData:
    """Padded arrays from the episodes of every task."""
    if not all(episodes):
        raise DataError(path, "", "at least one episode of every task", 0)
    every = [episode for task in episodes for episode in task]
    first = every[0]
    tasks, most = len(episodes), max(map(len, episodes))
    steps = max(len(episode.rewards) for episode in every)
    names = ("states", "actions", "rewards", "terminations", "velocity")
    size = tasks * most * (steps + 1) * sum(getattr(first, name)[:1].nbytes for name in names)
    if size > max_bytes:  # a small file of many short episodes and a long one
        what = f"at most {max_bytes} bytes with every episode padded to the longest's {steps} steps"
        raise DataError(path, "", what, f"{size} bytes")

    def zeros(length: int, like: np.ndarray) -> np.ndarray:
        return np.zeros((tasks, most, length, *like.shape[1:]), like.dtype)

    arrays = {name: zeros(steps + (name == "states"), getattr(first, name)) for name in names}
    lengths = np.zeros((tasks, most), np.int64)
    marks = {name: np.full((tasks, most), -1) for name in ("behaviour", "checkpoint")}
    for k, task in enumerate(episodes):
        for e, episode in enumerate(task):
            lengths[k, e] = len(episode.rewards)
            for name, array in arrays.items():
                value = getattr(episode, name)
                if value.shape[1:] != array.shape[3:] or value.dtype != array.dtype:
                    raise DataError(
                        path, f"task {k}, episode {e}: {name}",
                        f"{array.dtype} {array.shape[3:]}", f"{value.dtype} {value.shape[1:]}",
                    )  # fmt: skip
                array[k, e, : len(value)] = value
            for name, array in marks.items():
                array[k, e] = episode.extras.get(name, -1)
    facts = [_facts(each, path, k) for k, each in enumerate(metadata)]
    sizes = {len(fact["tasks"]) for fact in facts}
    if len(sizes) > 1:
        raise DataError(path, "task_params", "the same number for every task", sorted(sizes))
    for name in ("family", "tier"):
        found = sorted({fact[name] for fact in facts})
        if len(found) > 1:
            raise DataError(path, name, "the same for every task", found)
    return TaskData(
        **{k: torch.from_numpy(v) for k, v in (arrays | marks).items()},
        lengths=torch.from_numpy(lengths),
        tasks=torch.tensor([fact["tasks"] for fact in facts], dtype=torch.float32),
        task_ids=torch.tensor([fact["task_id"] for fact in facts]),
        references=torch.tensor([fact["references"] for fact in facts], dtype=torch.float32),
        training=torch.tensor([fact["training"] for fact in facts]),
        family=facts[0]["family"],
        tier=facts[0]["tier"],
    )


def _facts(metadata: dict[str, Any], path: Path, k: int) -> dict[str, Any]:
    """What the metadata says of a task, checked."""
    text = metadata.get("task_params", "[]")
    try:
        tasks = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        tasks = text
    facts = {
        "family": metadata.get("family", ""),
        "tier": metadata.get("tier", ""),
        "task_id": metadata.get("task_id", k),
        "training": metadata.get("task_split", "train") == "train",
        "references": [metadata.get(f"ref_{end}_score", math.nan) for end in ("min", "max")],
        "tasks": tasks,
    }
    for name, kind in {"family": str, "tier": str, "task_id": int}.items():
        if not isinstance(facts[name], kind):
            raise DataError(path, f"task {k}: {name}", kind.__name__, facts[name])
    if not 0 <= facts["task_id"] < 2**31:
        raise DataError(path, f"task {k}: task_id", "0 .. 2^31 - 1", facts["task_id"])
    for name in ("references", "tasks"):
        value = facts[name]
        numbers = isinstance(value, list) and all(isinstance(x, (int, float)) for x in value)
        if not numbers or not all(abs(x) < 1e30 or (x != x and name != "tasks") for x in value):
            raise DataError(path, f"task {k}: {name}", "finite numbers", value)
    return facts


# ---- writing


def make_task(family: str, task: list[float], **kwargs: Any) -> gym.Env:
    """One task of a family as a gymnasium environment; what datasets recover."""
    from envs import make
    from envs.adapt import to_gymnasium

    return to_gymnasium(make(family, 1, tasks=[task], **kwargs))


def dataset_id(family: str, task_id: int, tier: str) -> str:
    """Minari's name of one task's data."""
    return f"corro/{family}/task-{task_id:03d}-{tier}-v0"


def save(data: TaskData, root: str | Path, **metadata: str | float) -> None:
    """Write every task of a family as a Minari dataset; what is there already is left alone.

    Args:
        data: with `family` and `tier`.
        root: Minari's directory (`MINARI_DATASETS_PATH`).
        **metadata: further facts, the same for every task.
    """
    import minari
    from gymnasium.envs.registration import EnvSpec
    from minari.namespace import NAMESPACE_METADATA_FILENAME

    from envs import make

    root = Path(root)
    env = make(data.family, 1)
    spaces = env.single_observation_space, env.single_action_space
    for namespace in (Path("corro"), Path("corro") / data.family):
        (root / namespace).mkdir(parents=True, exist_ok=True)
        file = root / namespace / NAMESPACE_METADATA_FILENAME
        if not file.exists():
            file.write_text("{}")
    for k, task_id in enumerate(data.task_ids.tolist()):
        name = dataset_id(data.family, task_id, data.tier)
        if (root / name).exists():
            continue
        task = data.tasks[k].tolist()
        facts: dict[str, Any] = {
            "dataset_id": name,
            "minari_version": minari.__version__,
            "family": data.family,
            "tier": data.tier,
            "task_id": task_id,
            "task_split": "train" if bool(data.training[k]) else "test",
            "task_params": json.dumps(task),
            "horizon": data.horizon,
            **metadata,
        }
        low, high = data.references[k].tolist()
        if low == low and high == high:  # known
            facts |= {"ref_min_score": low, "ref_max_score": high}
        spec = EnvSpec(
            f"infomax/{data.family.replace('/', '-')}-v0",
            f"{__name__}:make_task",
            kwargs={"family": data.family, "task": task},
        )
        new = (root / name).with_name(f".{Path(name).name}.{os.getpid()}")
        shutil.rmtree(new, ignore_errors=True)
        write_minari(new / "data", facts, spec, spaces, _episodes(data, k))
        new.rename(root / name)


def _episodes(data: TaskData, k: int) -> list[Episode]:
    """The episodes of one task without their padding."""
    episodes = []
    for e, length in enumerate(data.lengths[k].tolist()):
        steps = {
            name: getattr(data, name)[k, e, :length].numpy()
            for name in ("actions", "rewards", "terminations", "velocity")
        }
        extras = {name: int(getattr(data, name)[k, e]) for name in ("behaviour", "checkpoint")}
        states = data.states[k, e, : length + 1].numpy()
        episodes += [Episode(states=states, **steps, extras=extras)] if length else []
    return episodes


# ---- the cache: arrays mapped into memory


def _store(data: TaskData, store: Path) -> TaskData:
    """Write `data` beside the datasets it was read from, and map it.

    Several processes may do so at once: each writes under a name of its own, the first to finish
    keeps the place and the others map what it wrote. Where nothing can be written (shared storage)
    the arrays stay in memory, with a warning.
    """
    tier = store.name.rpartition("-")[0]  # `data.tier` is what a file says, whatever that is
    for old in set(store.parent.glob(f"{tier}-*")) - {store}:  # read from older files
        shutil.rmtree(old, ignore_errors=True)
    new = store.with_name(f".{store.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        for field in fields(data):
            value = getattr(data, field.name)
            if isinstance(value, Tensor):
                np.save(new / f"{field.name}.npy", value.numpy())
        (new / "facts.json").write_text(json.dumps({"family": data.family, "tier": data.tier}))
        new.rename(store)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if not store.exists():
            warnings.warn(f"{store.parent}: not written, reading is slow: {error}", stacklevel=2)
            return data
    return _open(store)


def _open(store: Path) -> TaskData:
    try:
        facts: dict[str, Any] = {
            k: str(v) for k, v in json.loads((store / "facts.json").read_text()).items()
        }
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise DataError(store, "facts.json", "a dictionary (delete the cache)", error) from None
    arrays: dict[str, Any] = {}
    for field in fields(TaskData):
        if field.name not in facts:
            file = store / f"{field.name}.npy"
            try:
                # copy on write: torch knows no read-only tensors, and nothing reaches the file
                arrays[field.name] = torch.from_numpy(
                    np.load(file, mmap_mode="c", allow_pickle=False)
                )
            except Exception as error:  # numpy reads a header as Python source: many kinds
                raise DataError(file, "", "an array (delete the cache)", error) from None
    try:
        return TaskData(**arrays, **facts)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise DataError(store, "", "arrays that fit (delete the cache)", error) from None

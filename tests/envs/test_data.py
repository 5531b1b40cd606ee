"""Offline data: what is written is read back, and what is not plain data is refused by name."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch

import envs
from envs.data import MissingTierError, TaskData, load, save
from envs.hdf5 import DataError, SafeFile


def example(tasks: int = 3, episodes: int = 4, **changes: Any) -> TaskData:
    """Point-robot's tasks with random numbers for data; one episode is short and terminates."""
    generator = torch.Generator().manual_seed(0)
    env: Any = envs.make("point-robot", num_tasks=tasks)
    steps = env.max_episode_steps

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(tasks, episodes, *shape, generator=generator)

    data = TaskData.build(
        draw(steps + 1, 2),
        draw(steps, 2),
        -draw(steps),
        tasks=env.tasks,
        training=torch.arange(tasks) < tasks - 1,
        behaviour=torch.arange(tasks)[:, None].repeat(1, episodes),
        checkpoint=torch.arange(episodes).repeat(tasks, 1),
        references=torch.tensor([[-10.0, -4.0]] * tasks),
        family="point-robot",
        tier="mixed",
    )
    data.lengths[1, 2] = 4
    data.terminations[1, 2, 3] = True
    for name in ("actions", "rewards"):
        getattr(data, name)[1, 2, 4:] = 0
    data.states[1, 2, 5:] = 0
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def same(a: TaskData, b: TaskData) -> None:
    for name, value in vars(a).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(b, name), value, rtol=0, atol=0, equal_nan=True)
        else:
            assert getattr(b, name) == value


# ---- the arrays


def test_views_mask_and_returns() -> None:
    data = example()
    assert (data.num_tasks, data.num_episodes, data.horizon) == (3, 4, 10)
    assert torch.equal(data.observations[:, :, 1:], data.next_observations[:, :, :-1])
    assert data.mask.sum() == 3 * 4 * 10 - 6
    assert data.mask[1, 2].tolist() == [True] * 4 + [False] * 6
    torch.testing.assert_close(data.returns[1, 2], data.rewards[1, 2, :4].sum())
    normal = data.normalise(torch.tensor([[-10.0], [-7.0], [-4.0]]))
    assert normal.flatten().tolist() == [0, 50, 100]
    assert data.select("test").task_ids.tolist() == [2]
    assert data.select([2, 0]).task_ids.tolist() == [2, 0]
    with pytest.raises(ValueError, match="no task is left"):
        data.select("test").select("train")


def test_transitions_are_uniform_over_the_steps_that_happened() -> None:
    data = example()
    data.rewards = torch.arange(3 * 4 * 10).view(3, 4, 10).float()
    generator = torch.Generator().manual_seed(0)
    batch = data.sample_transitions(torch.tensor([1, 0, 1]), 20_000, generator)
    assert batch["observations"].shape == (3, 20_000, 2)
    for row, task in enumerate((1, 0, 1)):
        place = batch["rewards"][row].long()
        count = torch.bincount(place, minlength=120).view(3, 4, 10)
        real = data.mask[task]
        assert (count[task] > 0).equal(real)
        assert count.sum() == count[task].sum()
        expected = 20_000 / real.sum()
        assert (count[task][real] - expected).abs().max() < 5 * expected**0.5
        where = place // 10 % 4, place % 10
        assert torch.equal(batch["observations"][row], data.observations[task][where])
        assert torch.equal(batch["next_observations"][row], data.next_observations[task][where])
        assert torch.equal(batch["terminations"][row], data.terminations[task][where].float())


def test_episodes_come_whole_and_never_from_padding() -> None:
    data = example()
    data.lengths[0, 3] = 0
    generator = torch.Generator().manual_seed(0)
    batch = data.sample_episodes(torch.tensor([1, 0]), 500, generator)
    assert batch["actions"].shape == (2, 500, 10, 2)
    assert batch["mask"].shape == (2, 500, 10)
    assert batch["mask"].sum(2).unique().tolist() == [4, 10]
    assert batch["mask"][1].min() == 1  # task 0 has three whole episodes
    seen = {tuple(row.tolist()) for row in batch["rewards"][1]}
    assert seen == {tuple(row.tolist()) for row in data.rewards[0, :3]}


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards: expected torch\.float32, got torch\.float64"):
        TaskData.build(
            torch.zeros(3, 4, 11, 2), torch.zeros(3, 4, 10, 2), torch.zeros(3, 4, 10).double()
        )
    with pytest.raises(ValueError, match=r"lengths: expected shape \(\(3, 4\), ...\)"):
        TaskData.build(
            torch.zeros(3, 4, 11, 2), torch.zeros(3, 4, 10, 2), torch.zeros(3, 4, 10),
            lengths=torch.zeros(3, 5),
        )  # fmt: skip


# ---- files


def test_round_trip_through_minari_and_the_cache(tmp_path: Path) -> None:
    data = example()
    save(data, tmp_path)
    same(load(tmp_path, cache=False), data)
    same(load(tmp_path / "corro" / "point-robot"), data)  # writes the cache
    (store,) = (tmp_path / "corro" / "point-robot" / "cache").iterdir()
    with (store / "rewards.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    cached = load(tmp_path)  # is read from it
    assert cached.rewards[-1, -1, -1] == 7
    cached.rewards[:] = 0  # does not reach the file
    assert load(tmp_path).rewards[-1, -1, -1] == 7
    later = example(tasks=3, tier="expert", rewards=example().rewards * 0.5)
    save(later, tmp_path)
    same(load(tmp_path, "expert"), later)
    with pytest.raises(MissingTierError, match="tier: expected one of expert, mixed, got medium"):
        load(tmp_path, "medium")


def test_a_tier_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    """A family says which tasks it has; its data may be interrupted, or still be made."""
    save(example(), tmp_path)
    root = tmp_path / "corro/point-robot"
    facts = root / "namespace_metadata.json"
    facts.write_text(json.dumps({"train": [0, 1], "test": [2]}))
    same(load(tmp_path), example())  # writes the cache
    shutil.rmtree(root / "task-001-mixed-v0")
    words = "tier mixed: expected 3 tasks, got 2; issue the same `python train.py data` again"
    for cache in (True, False):
        with pytest.raises(DataError, match=re.escape(words)):
            load(tmp_path, cache=cache)
    for nonsense in ('{"train": 3}', '{"test": ["0"]}', "[]"):
        facts.write_text(nonsense)
        with pytest.raises(DataError, match=r"namespace_metadata\.json: .*expected a"):
            load(tmp_path)


def test_a_single_dataset_is_of_no_other_tier(tmp_path: Path) -> None:
    """Otherwise it would pass as its own data out of distribution."""
    save(example(tier="expert"), tmp_path)
    one = tmp_path / "corro/point-robot/task-001-expert-v0"
    same(load(one), load(one, "expert"))
    words = "tier: expected 'expert' of a single dataset, got ood"
    with pytest.raises(MissingTierError, match=words):
        load(one, "ood")
    flat = tmp_path / "d.hdf5"
    with h5py.File(flat, "w") as file:
        sound(file)
    assert load(flat).tier == load(flat, "mixed").tier == ""
    with pytest.raises(MissingTierError, match="tier: expected 'mixed' of a single dataset, got e"):
        load(flat, "expert")


def test_a_relative_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(example(), "data")
    same(load("data/corro/point-robot"), example())
    same(load("data"), example())


def test_minari_itself_reads_it_and_recovers_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = example()
    save(data, tmp_path, sampler_seed=5)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("corro/point-robot/task-001-mixed-v0")
    assert dataset.total_episodes == 4
    episode = dataset[2]
    assert np.array_equal(episode.observations, data.states[1, 2, :5])
    assert np.array_equal(episode.rewards, data.rewards[1, 2, :4])
    assert episode.terminations.tolist() == [False, False, False, True]
    assert not episode.truncations.any()
    metadata = dataset.storage.metadata
    assert metadata["sampler_seed"] == 5
    assert metadata["task_split"] == "train"
    (facts,) = dataset.storage.get_episode_metadata([2])
    assert facts["behaviour"] == 1
    assert facts["checkpoint"] == 2
    assert facts["return"] == pytest.approx(data.returns[1, 2].item())
    assert minari.get_normalized_score(dataset, np.array([-7.0])).item() == 0.5
    env = dataset.recover_environment()
    env.reset(seed=0)
    _, reward, *_ = env.step(np.zeros(2, np.float32))
    assert reward == pytest.approx(-1)  # the origin is 1 m from every goal
    position, reward, *_ = env.step(np.ones(2, np.float32))
    assert reward == pytest.approx(-np.linalg.norm(position - data.tasks[1].numpy()))
    assert "corro/point-robot" in minari.namespace.list_local_namespaces()
    same(load("corro/point-robot", cache=False), data)


def foreign(
    path: Path, observation_space: gym.Space, action_space: gym.Space, buffers: Any
) -> None:
    from minari.dataset.minari_storage import MinariStorage

    path.mkdir(parents=True)
    storage = MinariStorage.new(path, observation_space, action_space)
    storage.update_metadata({"dataset_id": "x/y-v0", "minari_version": minari.__version__})
    storage.update_episodes(buffers)


def test_any_minari_dataset(tmp_path: Path) -> None:
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    box = gym.spaces.Box(-1, 1, (3,), np.float64)
    parts = {
        "goal": box,
        "at": gym.spaces.Discrete(4, start=1),
        "many": gym.spaces.MultiDiscrete([2, 3], start=[0, -1]),
        "flags": gym.spaces.MultiBinary(2),
        "count": gym.spaces.Box(0, 9, (1,), np.uint32),
    }
    space = gym.spaces.Dict(parts)
    lengths = (3, 5)
    buffers = [
        EpisodeBuffer(
            observations={
                "goal": rng.uniform(-1, 1, (n + 1, 3)),
                "at": np.arange(n + 1) % 4 + 1,
                "many": np.stack([np.arange(n + 1) % 2, np.arange(n + 1) % 3 - 1], 1),
                "flags": rng.integers(2, size=(n + 1, 2), dtype=np.int8),
                "count": rng.integers(9, size=(n + 1, 1), dtype=np.uint32),
            },
            actions=np.arange(n) % 2,  # type: ignore[arg-type]
            rewards=np.ones(n),  # type: ignore[arg-type]
            terminations=np.arange(n) == n - 1,  # type: ignore[arg-type]
            truncations=np.zeros(n, bool),  # type: ignore[arg-type]
        )
        for n in lengths
    ]
    foreign(tmp_path / "d" / "data", space, gym.spaces.Discrete(2), buffers)
    data = load(tmp_path / "d")
    assert data.states.shape == (1, 2, 6, 15)
    for step in range(6):
        row: Any = {key: value[step] for key, value in buffers[1].observations.items()}  # type: ignore
        expected: Any = gym.spaces.flatten(space, row)
        assert np.allclose(data.states[0, 1, step], expected)
    assert data.actions.dtype == torch.int64
    assert data.lengths.tolist() == [[3, 5]]
    assert data.terminations.sum() == 2
    assert data.tasks.shape == (1, 0)


@pytest.mark.parametrize("name", ["many", "flags", "count"])
def test_observations_of_one_space(tmp_path: Path, name: str) -> None:
    from minari.data_collector import EpisodeBuffer

    space: gym.Space = {
        "many": gym.spaces.MultiDiscrete([3, 4]),
        "flags": gym.spaces.MultiBinary([2, 2]),
        "count": gym.spaces.Box(0, 9, (3,), np.uint32),
    }[name]
    space.seed(0)
    rows: Any = np.stack([space.sample() for _ in range(6)])
    buffer: Any = {
        "actions": np.stack([space.sample() for _ in range(5)]),
        "rewards": np.ones(5), "terminations": np.zeros(5, bool), "truncations": np.arange(5) == 4,
    }  # fmt: skip
    foreign(tmp_path / "data", space, space, [EpisodeBuffer(observations=rows, **buffer)])
    data = load(tmp_path)
    expected: Any = np.stack([gym.spaces.flatten(space, row) for row in rows])
    assert np.array_equal(data.states[0, 0].flatten(1), expected)
    assert np.array_equal(data.actions[0, 0], buffer["actions"])


@pytest.mark.parametrize("velocity", ["scalar", "integers", "a dictionary", "vector"])
def test_names_that_mean_something_else_to_others(tmp_path: Path, velocity: str) -> None:
    from minari.data_collector import EpisodeBuffer

    values: Any = {
        "scalar": np.ones(6), "integers": np.ones((6, 2), np.int64),
        "a dictionary": {"x": np.ones(6)}, "vector": np.ones((6, 2)),
    }  # fmt: skip
    space, rows = gym.spaces.Box(-1, 1, (3,)), np.zeros((6, 3), np.float32)
    buffer: Any = {
        "actions": rows[:5], "rewards": np.ones(5), "infos": {"velocity": values[velocity]},
        "terminations": np.zeros(5, bool), "truncations": np.arange(5) == 4,
    }  # fmt: skip
    foreign(tmp_path / "data", space, space, [EpisodeBuffer(observations=rows, **buffer)])
    with h5py.File(tmp_path / "data/main_data.hdf5", "a") as file:
        file["episode_0"].attrs["behaviour"] = "mine"
    data = load(tmp_path)
    assert data.velocity.shape == (1, 1, 5, 0)
    assert data.behaviour.tolist() == [[-1]]


@pytest.mark.parametrize("successors", [True, False])
def test_d4rl(tmp_path: Path, successors: bool) -> None:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(10, 3))
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["observations"] = observations
        file["actions"] = rng.normal(size=(10, 2))
        file["rewards"] = np.arange(10.0)
        file["terminals"] = np.arange(10) == 3
        file["timeouts"] = np.arange(10) == 7
        if successors:
            file["next_observations"] = observations + 1
    data = load(tmp_path / "d.hdf5")
    assert data.lengths.tolist() == [[4, 4, 2] if successors else [4, 3, 1]]
    assert data.terminations.nonzero().tolist() == [[0, 0, 3]]
    assert data.rewards[0, 1, :3].tolist() == [4, 5, 6]
    last = observations[7] + 1 if successors else observations[7]
    assert np.allclose(data.states[0, 1, 4 if successors else 3], last)


@pytest.mark.parametrize("kind", [int, float])
def test_d3rlpy(tmp_path: Path, kind: type) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"], file["version"] = 3, "2.1"
        for i, (steps, ended) in enumerate(((4, True), (4, False), (0, True))):
            file[f"observations_{i}"] = rng.normal(size=(steps, 3)).astype(np.float32)
            file[f"actions_{i}"] = rng.integers(2, size=(steps, 1)).astype(kind)
            file[f"rewards_{i}"] = np.ones((steps, 1), np.float32)
            file[f"terminated_{i}"] = ended
    data = load(tmp_path / "d.h5")
    assert data.lengths.tolist() == [[4, 3]]
    assert data.terminations.nonzero().tolist() == [[0, 0, 3]]
    assert data.actions.shape == ((1, 2, 4) if kind is int else (1, 2, 4, 1))


def test_bytes_are_numbers_unless_they_are_images(tmp_path: Path) -> None:
    for shape, expected in {(10,): (1, 1, 10, 1), (10, 3, 4, 4): (1, 1, 10, 3, 4, 4)}.items():
        with h5py.File(tmp_path / "d.hdf5", "w") as file:
            sound(file)
            _replace(file, "observations", np.full(shape, 7, np.uint8))
        data = load(tmp_path / "d.hdf5")
        assert data.states.shape == expected
        assert data.states.dtype == (torch.uint8 if len(shape) == 4 else torch.float32)


# ---- files that are refused


def sound(file: h5py.File) -> None:
    """Ten steps as D4RL writes them."""
    file["observations"], file["actions"] = np.ones((10, 3)), np.ones((10, 2))
    file["rewards"], file["terminals"] = np.ones(10), np.zeros(10, bool)


def _replace(file: h5py.File, key: str, value: Any = None, **how: Any) -> None:
    del file[key]
    if value is None:
        file.create_dataset(key, **how)
    else:
        file[key] = value


def external_storage(file: h5py.File) -> None:
    _replace(file, "rewards", shape=(10,), dtype="f8", external=[("/etc/hostname", 0, 80)])


def external_link(file: h5py.File) -> None:
    _replace(file, "rewards", h5py.ExternalLink("other.h5", "/rewards"))


def soft_link(file: h5py.File) -> None:
    _replace(file, "rewards", h5py.SoftLink("/actions"))


def virtual(file: h5py.File) -> None:
    del file["rewards"]
    layout = h5py.VirtualLayout(shape=(10,), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "rewards", shape=(10,))
    file.create_virtual_dataset("rewards", layout)


def objects(file: h5py.File) -> None:
    _replace(file, "rewards", shape=(10,), dtype=h5py.vlen_dtype(np.float64))


def references(file: h5py.File) -> None:
    _replace(file, "rewards", shape=(10,), dtype=h5py.ref_dtype)


def strings(file: h5py.File) -> None:
    _replace(file, "rewards", np.full(10, b"1.0"))


def compound(file: h5py.File) -> None:
    _replace(file, "rewards", np.zeros(10, [("x", "f8"), ("y", "i4")]))


def size_bomb(file: h5py.File) -> None:
    """119 GiB in a few bytes."""
    shape = (16_000_000_000,)
    _replace(file, "rewards", shape=shape, dtype="f8", chunks=(1 << 20,), compression="gzip")


def compressed_bomb(file: h5py.File) -> None:
    zeros = np.zeros(4 << 20)
    _replace(file, "rewards", shape=zeros.shape, dtype="f8", data=zeros, compression="gzip")


def large_chunks(file: h5py.File) -> None:
    how = {"chunks": (16 << 20,), "maxshape": (None,), "data": np.zeros(10), "compression": "gzip"}
    _replace(file, "rewards", shape=(10,), dtype="f8", **how)


def ragged(file: h5py.File) -> None:
    _replace(file, "rewards", np.zeros(9))


def not_finite(file: h5py.File) -> None:
    rewards: Any = file["rewards"]
    rewards[4] = np.nan


def infinite(file: h5py.File) -> None:
    observations: Any = file["observations"]
    observations[2, 1] = np.inf


def beyond_float32(file: h5py.File) -> None:
    rewards: Any = file["rewards"]
    rewards[4] = 1e300


def beyond_int64(file: h5py.File) -> None:
    _replace(file, "actions", np.full(10, 2**63, np.uint64))


def not_finite_alone(file: h5py.File) -> None:
    _replace(file, "observations", np.float32(np.nan))


def padding_bomb(file: h5py.File) -> None:
    """Short episodes and a long one: gigabytes of padding."""
    for key in list(file):
        del file[key]
    ends = np.ones(40_000, bool)
    ends[10_000:] = False
    arrays = {"observations": np.zeros((40_000, 1), np.int8), "terminals": ends}
    for name in ("actions", "rewards"):
        arrays[name] = np.zeros(40_000, np.int8)
    for name, array in arrays.items():
        file.create_dataset(name, data=array, compression="gzip")


def missing(file: h5py.File) -> None:
    del file["rewards"]


def a_group(file: h5py.File) -> None:
    del file["rewards"]
    file.create_group("rewards")


def empty(file: h5py.File) -> None:
    _replace(file, "rewards", h5py.Empty("f8"))


HOSTILE = {
    external_storage: "rewards: expected data in this file, got external storage",
    external_link: "rewards: expected an object of this file, got a link to other.h5:/rewards",
    soft_link: "rewards: expected an object of this file, got a link to :/actions",
    virtual: "rewards: expected data of its own, got a virtual dataset",
    objects: "rewards: expected numbers (dtype kind f or i or u or b), got dtype object",
    references: "rewards: expected numbers (dtype kind f or i or u or b), got dtype object",
    strings: "rewards: expected numbers (dtype kind f or i or u or b), got dtype |S3",
    compound: "rewards: expected numbers (dtype kind f or i or u or b), got dtype [('x'",
    size_bomb: "rewards: expected at most 1032 times its 0 bytes on disk, got 128000000000 bytes",
    compressed_bomb: "rewards: expected at most 1000000 bytes in all, got 33554",
    large_chunks: "rewards: expected chunks of at most 67108864 bytes, got 134217728 bytes",
    ragged: "observations: expected 9 rows, as many as rewards, got (10, 3)",
    not_finite: "rewards[4]: expected finite numbers of float32, got nan",
    infinite: "observations[2, 1]: expected finite numbers of float32, got inf",
    beyond_float32: "rewards[4]: expected finite numbers of float32, got 1e+300",
    beyond_int64: "actions[0]: expected numbers of int64, got 9223372036854775808",
    not_finite_alone: "observations[]: expected finite numbers of float32, got nan",
    padding_bomb: "expected at most 1000000 bytes with every episode padded to the longest's 29999 "
    "steps, got ",
    missing: "rewards: expected to exist, got only actions, observations, terminals",
    a_group: "rewards: expected an array, got Group",
    empty: "rewards: expected an array, got nothing",
}


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda attack: attack.__name__)
def test_hostile_files_are_refused_by_name(tmp_path: Path, attack: Any) -> None:
    path = tmp_path / "d.hdf5"
    with h5py.File(path, "w") as file:
        sound(file)
    assert load(path).num_episodes == 1
    with h5py.File(path, "a") as file:
        attack(file)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="^" + re.escape(f"{path}: {HOSTILE[attack]}")):
        load(path, max_bytes=1_000_000)


def test_what_we_write_notices_every_change(tmp_path: Path) -> None:
    """Numbers as well: a flipped bit is an error and never another reward."""
    save(example(), tmp_path)
    root = tmp_path / "corro/point-robot"
    file = root / "task-001-mixed-v0/data/main_data.hdf5"
    content = file.read_bytes()
    reward = example().rewards[1, 3].numpy().tobytes()
    assert content.count(reward) == 1
    for at in (content.index(reward) + 6, *range(8, len(content), 499)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        try:
            data = load(root, cache=False)
        except DataError:
            continue
        assert at > content.index(reward) + len(reward) or at < content.index(reward)
        same(data, example())  # a byte that nobody reads


def test_mistakes_of_ours_are_not_called_damage(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["x"] = np.ones(3)

    def mistaken(mistake: type[Exception]) -> None:
        with SafeFile(tmp_path / "d.hdf5") as safe:
            assert len(safe.read("x")) == 3
            raise mistake("ours")

    for mistake in (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError):
        with pytest.raises(mistake, match="ours"):
            mistaken(mistake)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "d.hdf5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="expected an HDF5 file"):
        load(path)
    with pytest.raises(DataError, match="expected a directory, a file or a local Minari id"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected one dataset or one family of datasets, got none"):
        load(tmp_path)


BOMB = json.dumps({"type": "Box", "dtype": "float32", "shape": [10**12], "low": 0, "high": 1})
METADATA = {
    "observation_space: expected a space, got None": {"observation_space": None},
    "observation_space.dtype: expected one of": {
        "observation_space": json.dumps({"type": "Box", "dtype": "object", "shape": [2]})
    },
    "observation_space.shape: expected sizes, got [-2]": {
        "observation_space": json.dumps({"type": "Box", "dtype": "float32", "shape": [-2]})
    },
    "episode_0/observations: expected shape (11, 3)": {
        "observation_space": json.dumps({"type": "Box", "dtype": "float32", "shape": [3]})
    },
    "episode_0/observations: expected shape (11, 1000000000000)": {"observation_space": BOMB},
    "action_space: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, got Graph": {
        "action_space": json.dumps({"type": "Graph"})
    },
    **{
        f"action_space.nvec: expected a list of sizes, got {nvec}": {
            "action_space": json.dumps({"type": "MultiDiscrete", "nvec": nvec})
        }
        for nvec in (["a", "b"], [[2, 3], [4]], [{}, {}], [[3, 4], [3, 4]], [0, 2], [2**70], [])
    },
    **{
        f"action_space.start: expected 2 integers, got {start}": {
            "action_space": json.dumps({"type": "MultiDiscrete", "nvec": [3, 4], "start": start})
        }
        for start in ("x", [0, 0, 0], [0, "a"], [0, -(2**70)])
    },
    "action_space.n: expected sizes, got a": {
        "action_space": json.dumps({"type": "MultiBinary", "n": "a"})
    },
    "action_space: expected integers n and start": {
        "action_space": json.dumps({"type": "Discrete", "n": 2**70})
    },
    "episode_0/actions: expected numbers (dtype kind i or u), got dtype float32": {
        "action_space": json.dumps({"type": "Discrete", "n": 2})
    },
    "expected 1000000000000 episodes, got 4": {"total_episodes": 10**12},
    "task 0: tasks: expected finite numbers": {"task_params": '{"a": 1}'},
    "task 0: tasks: expected finite numbers, got [nan, 0]": {"task_params": "[NaN, 0]"},
    "task 0: tasks: expected finite numbers, got [[": {"task_params": "[" * 100_000},
    "task 0: task_id: expected 0 .. 2^31 - 1": {"task_id": 2**70},
    "task 0: task_id: expected int": {"task_id": "1"},
    "data_format: expected 'hdf5', got 'arrow'": {"data_format": "arrow"},
}


@pytest.mark.parametrize("words", METADATA)
def test_hostile_metadata_is_refused_by_name(tmp_path: Path, words: str) -> None:
    save(example(), tmp_path)
    file = tmp_path / "corro/point-robot/task-000-mixed-v0/data/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | METADATA[words]))
    with pytest.raises(DataError, match=re.escape(words)):
        load(tmp_path)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"family": "nonsense"},
            "family: expected a family of tasks such as ant-dir, got nonsense",
        ),
        ({"family": "gym/antigravity:fly"}, "family: expected a family of tasks such as ant-dir"),
        ({"family": "particles/free"}, "family: expected a family of tasks such as ant-dir"),
        ({"family": "half-cheetah-vel"}, "task_params: expected shape (1,) of half-cheetah-vel"),
        ({"family": "ant-dir"}, "states: expected shape (27,) of ant-dir, got (2,)"),
        ({"task_params": "[]"}, "task_params: expected shape (2,) of point-robot, got (0,)"),
    ],
)
def test_a_family_is_one_of_ours_and_fits(tmp_path: Path, facts: dict, words: str) -> None:
    """Whoever evaluates makes the environment that the data name."""
    save(example(), tmp_path)
    files = sorted(tmp_path.rglob("task-*/data/metadata.json"))
    sources = [tmp_path, files[0].parents[1]]
    for file in files:
        file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    for source in sources:
        with pytest.raises(DataError, match=re.escape(words)):
            load(source)
    for cached in tmp_path.rglob("facts.json"):  # neither is a cache believed
        with pytest.raises(DataError, match=re.escape(words)):
            load(tmp_path)
        cached.write_text(json.dumps({"family": "nonsense", "tier": "mixed"}))
        with pytest.raises(DataError, match="family: expected a family of tasks"):
            load(tmp_path)
    assert "antigravity" not in sys.modules


def test_tasks_are_of_one_family_and_tier(tmp_path: Path) -> None:
    save(example(), tmp_path)
    file = tmp_path / "corro/point-robot/task-001-mixed-v0/data/metadata.json"
    metadata = json.loads(file.read_text())
    for name, other in {"family": "ant-dir", "tier": "ood"}.items():
        file.write_text(json.dumps(metadata | {name: other}))
        with pytest.raises(DataError, match=f"{name}: expected the same for every task"):
            load(tmp_path)


def test_what_episodes_say_of_themselves_is_checked(tmp_path: Path) -> None:
    save(example(), tmp_path)
    file = tmp_path / "corro/point-robot/task-000-mixed-v0/data/main_data.hdf5"
    with h5py.File(file, "a") as opened:
        opened["episode_1"].attrs["behaviour"] = np.uint64(2**63)
    words = "episode_1@behaviour: expected a number of int64, got 9223372036854775808"
    with pytest.raises(DataError, match=words):
        load(tmp_path)


def test_one_hot_is_no_bomb(tmp_path: Path) -> None:
    """A byte that chooses one of 4096 becomes 16 KB."""
    from minari.data_collector import EpisodeBuffer

    rows: Any = np.zeros(101, np.int64)
    buffer: Any = {
        "actions": rows[:100], "rewards": np.ones(100),
        "terminations": np.zeros(100, bool), "truncations": np.arange(100) == 99,
    }  # fmt: skip
    space = gym.spaces.Discrete(4096)
    foreign(tmp_path / "data", space, space, [EpisodeBuffer(observations=rows, **buffer)])
    words = "episode_0/observations: expected at most 1000000 bytes in all, got 165"
    with pytest.raises(DataError, match=words):
        load(tmp_path, max_bytes=1_000_000)


def test_two_processes_may_write_the_cache_at_once(tmp_path: Path, monkeypatch) -> None:
    """While one writes, another begins, finishes and keeps the place; both read the data."""
    save(example(), tmp_path)
    write, found = np.save, []

    def interrupted(file: Path, array: np.ndarray) -> None:
        write(file, array)
        if not found:
            found.append(None)
            with monkeypatch.context() as other:
                other.setattr("os.getpid", lambda: 1)
                found[0] = load(tmp_path)

    monkeypatch.setattr(np, "save", interrupted)
    same(load(tmp_path), example())
    same(found[0], example())
    (store,) = (tmp_path / "corro" / "point-robot" / "cache").iterdir()
    assert re.fullmatch("mixed-[0-9a-f]{16}", store.name)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_where_nothing_can_be_written_there_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The tests may run as a user who may do anything: the system's answers are made up."""
    save(example(), tmp_path)

    def refuse(*arguments: Any, **how: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as storage:
        storage.setattr(*((np, "save") if number == errno.ENOSPC else (Path, "mkdir")), refuse)
        with pytest.warns(UserWarning, match=f"cache: not written.*{os.strerror(number)}"):
            same(load(tmp_path), example())
    assert not any((tmp_path / "corro/point-robot").glob("cache/*"))
    same(load(tmp_path), example())
    assert any((tmp_path / "corro/point-robot").glob("cache/*"))


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    save(example(), tmp_path)
    load(tmp_path)
    (store,) = (tmp_path / "corro" / "point-robot" / "cache").iterdir()
    lengths = np.load(store / "lengths.npy")
    for bad in (lengths + 7, lengths.astype(np.float32), lengths[:, :2], np.array(["a"])):
        np.save(store / "lengths.npy", bad)
        with pytest.raises(DataError, match="delete the cache"):
            load(tmp_path)
    unclosed = (store / "actions.npy").read_bytes().replace(b"}", b"{", 1)  # of the header
    for damaged in (b"", unclosed):
        (store / "lengths.npy").write_bytes(damaged)
        with pytest.raises(DataError, match=r"lengths\.npy: expected an array"):
            load(tmp_path)
    np.save(store / "lengths.npy", lengths)
    facts = store / "facts.json"
    facts.write_text(json.dumps({"family": "point-robot", "tier": "mixed", "states": "x"}))
    with pytest.raises(DataError, match="delete the cache"):
        load(tmp_path)
    shutil.rmtree(store)
    same(load(tmp_path), example())


def test_metadata_that_is_not_json(tmp_path: Path) -> None:
    save(example(), tmp_path)
    file = tmp_path / "corro/point-robot/task-000-mixed-v0/data/metadata.json"
    for text in ("{", "[" * 100_000, "[]"):
        file.write_text(text)
        with pytest.raises(DataError, match=r"metadata\.json: expected"):
            load(tmp_path)


def test_no_module_is_imported_for_a_dataset(tmp_path: Path) -> None:
    """Minari would make the environment that `env_spec` names, from any module."""
    save(example(), tmp_path)
    file = tmp_path / "corro/point-robot/task-000-mixed-v0/data/metadata.json"
    metadata = json.loads(file.read_text())
    metadata["env_spec"] = metadata["env_spec"].replace("envs.data:make_task", "antigravity:fly")
    file.write_text(json.dumps(metadata))
    load(tmp_path)
    assert "antigravity" not in sys.modules


def test_tasks_must_agree(tmp_path: Path) -> None:
    here = tmp_path / "here"
    save(example(), here)
    other = tmp_path / "other"
    save(example(), other)
    target = here / "corro/point-robot/task-000-mixed-v0"
    shutil.rmtree(target)
    shutil.copytree(other / "corro/point-robot/task-000-mixed-v0", target)
    file = target / "data" / "main_data.hdf5"
    with h5py.File(file, "a") as opened:
        for i in range(4):
            del opened[f"episode_{i}/actions"]
            opened[f"episode_{i}/actions"] = np.zeros((10, 3), np.float32)
    metadata = json.loads((target / "data" / "metadata.json").read_text())
    space = json.dumps({"type": "Box", "dtype": "float32", "shape": [3]})
    (target / "data" / "metadata.json").write_text(json.dumps(metadata | {"action_space": space}))
    with pytest.raises(DataError, match=r"task 1, episode 0: actions: expected float32 \(3,\)"):
        load(here)


def test_a_tier_that_is_a_path_leads_nowhere(tmp_path: Path) -> None:
    """What is stale in the cache is found by the tier's name, and deleted."""
    save(example(), tmp_path)
    root = tmp_path / "corro/point-robot"
    for file in root.rglob("task-*/data/metadata.json"):
        hostile = {"tier": "../task-000-mixed"}
        file.write_text(json.dumps(json.loads(file.read_text()) | hostile))
    (root / "cache").mkdir()
    load(tmp_path)
    assert (root / "task-000-mixed-v0").exists()

"""Files that somebody else wrote to do harm: each is refused by name, and nothing of it is run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # last: it has an envs.py, too

import trust_runs  # noqa: E402
from trust_inputs import watched  # noqa: E402

import agents  # noqa: E402
from agents import MASD, CheckpointError, ConfigError  # noqa: E402
from agents.core.checkpoint import save_checkpoint  # noqa: E402
from agents.core.config import read_yaml  # noqa: E402
from envs.data import load  # noqa: E402
from envs.hdf5 import DataError  # noqa: E402
from mi.__main__ import main as estimate  # noqa: E402

CANARY = "executed"
"""What a payload would make, beside the file that holds it."""
DEEP = b"[" * 200_000 + b"]" * 200_000
HUGE = 2**62


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path.with_name(CANARY)),)


ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {}
"""Name -> what writes the file, and what its refusal has to say; the suffix says who reads it."""


def attack(suffix: str, words: str) -> Callable[[Any], Any]:
    def named(write: Any) -> Any:
        ATTACKS[f"{write.__name__}.{suffix}"] = write, words
        return write

    return named


# ---- checkpoints


def archive(path: Path, *members: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, how)


STATE = json.dumps({"format": 1, "tree": {"tensor": "0"}}).encode()


def tensors(shape: Any = (1,), end: int = 4, length: int | None = None) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    header = json.dumps({"0": entry}).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + b"abcd"


@attack("ckpt", "no end of a zip file")
def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path)))


@attack("ckpt", "members, expected state.json and state.safetensors")
def of_torch_save(path: Path) -> None:
    torch.save(Payload(path), path)


@attack("ckpt", "members ['data.pkl', 'state.safetensors']")
def pickle_as_a_member(path: Path) -> None:
    archive(path, ("data.pkl", pickle.dumps(Payload(path))), ("state.safetensors", tensors()))


@attack("ckpt", "not a readable checkpoint")
def pickle_as_the_state(path: Path) -> None:
    harm = pickle.dumps(Payload(path))
    archive(path, ("state.json", harm), ("state.safetensors", harm))


@attack("ckpt", "state.json is compressed, expected stored bytes")
def zip_bomb(path: Path) -> None:
    members = ("state.json", b" " * (64 << 20)), ("state.safetensors", tensors())
    archive(path, *members, how=zipfile.ZIP_DEFLATED)


@attack("ckpt", "members ['../../state.safetensors', 'state.json']")
def path_traversal(path: Path) -> None:
    archive(path, ("state.json", STATE), ("../../state.safetensors", tensors()))


@attack("ckpt", "members ['/tmp/state.safetensors', 'state.json']")
def absolute_path(path: Path) -> None:
    archive(path, ("state.json", STATE), ("/tmp/state.safetensors", tensors()))


@attack("ckpt", "members ['state.json', 'state.json']")
def duplicate_member(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, ("state.json", STATE), ("state.json", STATE))


@attack("ckpt", "nested too deeply")
def deep_json(path: Path) -> None:
    state = b'{"format": 1, "tree": ' + DEEP + b"}"
    archive(path, ("state.json", state), ("state.safetensors", tensors()))


@attack("ckpt", "does not fit the member")
def declares_2_62_elements(path: Path) -> None:
    content = tensors([HUGE], 4 * HUGE)
    archive(path, ("state.json", STATE), ("state.safetensors", content))


@attack("ckpt", "header")
def declares_a_header_of_2_62_bytes(path: Path) -> None:
    archive(path, ("state.json", STATE), ("state.safetensors", tensors(length=HUGE)))


@attack("ckpt", "newer format 2, this version reads <= 1")
def newer_format(path: Path) -> None:
    state = json.dumps({"format": 2, "tree": None, "more": 1}).encode()
    archive(path, ("state.json", state), ("state.safetensors", tensors()))


def agent() -> MASD:
    return MASD("particles/free", num_envs=2, horizon=5, hidden=[8])


@attack("ckpt", "policy: NaN or infinity; expected finite values")
def weights_of_nan(path: Path) -> None:
    tree = agent().state_dict()
    next(iter(tree["parts"]["policy"].values())).view(-1)[0] = torch.nan
    save_checkpoint(path, tree)


@attack("ckpt", "num_timesteps: expected a count, got 'x'")
def steps_that_are_no_number(path: Path) -> None:
    save_checkpoint(path, agent().state_dict() | {"num_timesteps": "x"})


@attack("ckpt", "holds agent 'os.system', expected one of")
def another_agent(path: Path) -> None:
    save_checkpoint(path, agent().state_dict() | {"agent": "os.system"})


# ---- HDF5


def dataset(path: Path, key: str = "rewards") -> h5py.File:
    """A sound file of ten steps, but for `key`, which is not there."""
    file = h5py.File(path, "w")
    arrays = {
        "observations": np.ones((10, 3)), "actions": np.ones((10, 2)),
        "rewards": np.ones(10), "terminals": np.zeros(10, bool),
    }  # fmt: skip
    for name in arrays.keys() - {key}:
        file[name] = arrays[name]
    return file


@attack("hdf5", "rewards: expected data in this file, got external storage")
def external_storage(path: Path) -> None:
    with dataset(path) as file:
        file.create_dataset("rewards", (10,), "f8", external=[("/etc/hostname", 0, 80)])


@attack("hdf5", "rewards: expected an object of this file, got a link to other.h5:/rewards")
def external_link(path: Path) -> None:
    with dataset(path) as file:
        file["rewards"] = h5py.ExternalLink("other.h5", "/rewards")


@attack("hdf5", "rewards: expected an object of this file, got a link to :/actions")
def soft_link(path: Path) -> None:
    with dataset(path) as file:
        file["rewards"] = h5py.SoftLink("/actions")


@attack("hdf5", "rewards: expected data of its own, got a virtual dataset")
def virtual_set(path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(10,), dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "rewards", shape=(10,))
    with dataset(path) as file:
        file.create_virtual_dataset("rewards", layout)


@attack("hdf5", "rewards: expected numbers (dtype kind f or i or u or b), got dtype object")
def object_dtype(path: Path) -> None:
    with dataset(path) as file:
        data = file.create_dataset("rewards", (10,), h5py.vlen_dtype(np.uint8))
        data[0] = np.frombuffer(pickle.dumps(Payload(path)), np.uint8)


@attack("hdf5", "rewards: expected numbers (dtype kind f or i or u or b), got dtype object")
def reference_dtype(path: Path) -> None:
    with dataset(path) as file:
        file.create_dataset("rewards", (10,), h5py.ref_dtype)


@attack("hdf5", "rewards: expected numbers (dtype kind f or i or u or b), got dtype |V")
def opaque_pickle(path: Path) -> None:
    with dataset(path) as file:
        file["rewards"] = np.full(10, np.void(pickle.dumps(Payload(path))))


@attack("hdf5", "times its 0 bytes on disk, got 36893488147419103232 bytes")
def declares_2_65_bytes(path: Path) -> None:
    with dataset(path) as file:
        file.create_dataset("rewards", (HUGE,), "f8", chunks=(1 << 20,), compression="gzip")


@attack("hdf5", "rewards: expected at most 1000000 bytes in all, got 33554")
def compressed_bomb(path: Path) -> None:
    with dataset(path) as file:
        file.create_dataset("rewards", data=np.zeros(4 << 20), compression="gzip")


@attack("hdf5", "rewards: expected chunks of at most 67108864 bytes, got 134217728 bytes")
def huge_chunk(path: Path) -> None:
    how: Any = {"chunks": (16 << 20,), "maxshape": (None,), "compression": "gzip"}
    with dataset(path) as file:
        file.create_dataset("rewards", data=np.zeros(10), **how)


@attack("hdf5", "rewards[4]: expected finite numbers of float32, got nan")
def values_of_nan(path: Path) -> None:
    with dataset(path) as file:
        file["rewards"] = np.where(np.arange(10) == 4, np.nan, 1.0)


@attack("hdf5", "expected an HDF5 file")
def newer_superblock(path: Path) -> None:
    dataset(path).close()
    content = bytearray(path.read_bytes())
    content[8] = 200  # the version follows the signature
    path.write_bytes(content)


@attack("hdf5", "expected an HDF5 file")
def a_pickle_named_hdf5(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path)))


# ---- Minari's metadata


def metadata(path: Path, **changes: Any) -> None:
    root = trust_runs.dataset(path)
    file = next(root.rglob("*mixed*/data/metadata.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@attack("minari", "metadata.json: expected metadata in JSON")
def deep_metadata(path: Path) -> None:
    metadata(path)
    next(path.rglob("*mixed*/data/metadata.json")).write_bytes(DEEP)


@attack(
    "minari", "observation_space: expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
)
def space_of_another_module(path: Path) -> None:
    metadata(path, observation_space='{"type": "antigravity:fly"}')


@attack("minari", "observation_space.shape: expected sizes, got [4611686018427387904]")
def space_of_2_62_numbers(path: Path) -> None:
    metadata(
        path, observation_space=json.dumps({"type": "Box", "dtype": "float32", "shape": [HUGE]})
    )


@attack("minari", "family: expected a family of tasks such as ant-dir, got gym/antigravity:fly")
def family_of_another_module(path: Path) -> None:
    root = trust_runs.dataset(path)
    for file in root.rglob("*mixed*/data/metadata.json"):
        facts = json.loads(file.read_text()) | {"family": "gym/antigravity:fly"}
        file.write_text(json.dumps(facts))


# ---- npz


@attack("npz", "named arrays; Object arrays cannot be loaded when allow_pickle=False")
def pickled_array(path: Path) -> None:
    np.savez(path, x=np.array([Payload(path)], object), y=np.ones(10))


@attack("npz", "expected an .npz file of named arrays")
def a_pickle_named_npz(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path)))


def array_file(shape: str, descr: str = "<f8") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@attack("npz", "expected an .npz file of named arrays")
def array_of_2_62_numbers(path: Path) -> None:
    archive(path, ("x.npy", array_file(f"({HUGE},)")), ("y.npy", array_file("(0,)")))


@attack("npz", "expected an .npz file of named arrays")
def code_as_a_shape(path: Path) -> None:
    archive(path, ("x.npy", array_file("__import__('os').getpid()")), ("y.npy", array_file("(0,)")))


@attack("npz", "expected an .npz file of named arrays")
def damaged_content(path: Path) -> None:
    np.savez(path, x=np.arange(10.0), y=np.ones(10))
    content = path.read_bytes()
    path.write_bytes(content.replace(np.float64(7).tobytes(), np.float64(8).tobytes()))


# ---- configurations


@attack("yaml", "YAML tags are not supported")
def python_object(path: Path) -> None:
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{path.with_name(CANARY)}']\n")


@attack("yaml", "interpolation is not supported")
def interpolation(path: Path) -> None:
    path.write_text("seed: ${oc.env:HOME}\n")


@attack("yaml", "nest")
def deep_yaml(path: Path) -> None:
    path.write_bytes(b"seed: " + b"[" * 100_000 + b"]" * 100_000)


@attack("yaml", "YAML anchors and aliases are not supported")
def billion_laughs(path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path.write_text("\n".join(lines))


def read(path: Path) -> None:
    """As a user would."""
    if path.suffix == ".ckpt":
        agents.load(path)
    elif path.suffix == ".hdf5":
        load(path, max_bytes=1_000_000)
    elif path.suffix == ".minari":
        load(path, cache=False)
    elif path.suffix == ".yaml":
        read_yaml(path)
    else:
        output = io.StringIO()
        with contextlib.redirect_stderr(output):
            assert estimate([str(path), "x", "y", "--estimator", "gaussian"]) == 2
        raise ConfigError(output.getvalue().strip())


@pytest.fixture(scope="module", autouse=True)
def sound(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is not hostile is read, which also imports whatever reading needs."""
    folder = tmp_path_factory.mktemp("sound")
    agent().save(folder / "c.ckpt")
    with dataset(folder / "c.hdf5") as file:
        file["rewards"] = np.ones(10)
    (folder / "c.minari").mkdir()
    metadata(folder / "c.minari")
    (folder / "c.yaml").write_text("seed: 1")
    for name in ("c.ckpt", "c.hdf5", "c.minari", "c.yaml"):
        read(folder / name)
    np.savez(folder / "c.npz", x=np.arange(50.0), y=np.arange(50.0) ** 2)
    assert estimate([str(folder / "c.npz"), "x", "y", "--estimator", "gaussian"]) == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_is_refused_by_name_and_runs_nothing(name: str, tmp_path: Path) -> None:
    write, words = ATTACKS[name]
    path = tmp_path / f"c{Path(name).suffix}"
    if path.suffix == ".minari":
        path.mkdir()
    write(path)
    tracemalloc.start()
    try:
        with (
            watched() as events,
            pytest.raises((CheckpointError, DataError, ConfigError)) as caught,
        ):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    print(message, peak >> 20)
    assert words in message
    assert path.name in message
    assert "\n" not in message
    assert events == []
    assert not (tmp_path / CANARY).exists()
    assert peak < 600 << 20


def test_a_payload_would_be_noticed(tmp_path: Path) -> None:
    """The canary and the audit hook see what they are there for.

    The one place that unpickles, and only what it has just made: without it the tests above would
    pass with a hook that sees nothing.
    """
    with watched() as events:
        pickle.loads(pickle.dumps(Payload(tmp_path / "c")))
    assert (tmp_path / CANARY).exists()
    assert "pickle.find_class" in events
    assert "os.mkdir" in events

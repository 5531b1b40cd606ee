"""Campaigns of `trust.py` against untrusted input: settings, checkpoints, datasets, mutated."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import resource
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from trust_runs import Problems, dataset, late, make, same, wait

import train
from agents import AGENTS, CheckpointError, ConfigError, NonFiniteError
from agents.core import config as configuration
from agents.core.checkpoint import load_checkpoint
from envs.data import TaskData, _open, load
from envs.hdf5 import DataError
from mi.__main__ import main as mi_main

WORDS = ("", "-1", "0", "1e999", "nan", "true", "null", "[]", "{}", "[1,[2,[3]]]", "${x}",
         "!!python/x", "&a", "1e-3", "10**9", "'", "\0", "é", "9" * 400, "a" * 2000, "0x10", "010",
         "1:30", "- -", "{a: {b: c}}", "../../etc", "~", "*a", "[8,8]", "hard", "🙂", "%s",
         "2", "16", "0.5", "False")  # fmt: skip


def configs(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Mutated settings give one line, or a configuration; nothing is run or opened for writing."""
    draw, problems, cls = random.Random(2), [], AGENTS[name].Config
    keys = [*configuration.to_dict(cls())]
    layers, _ = train._layers(f"smoke/{name}")
    valid = 0
    with watched() as events:
        for _ in range(count):
            chosen = []
            for _ in range(draw.randrange(1, 4)):
                key = draw.choice(keys)
                if draw.random() < 0.2:
                    key = draw.choice(
                        (key[:-1], key + ".x", key + "..", "", key.upper(), "env_kwargs." + key)
                    )
                chosen.append(
                    draw.choice((f"{key}={draw.choice(WORDS)}", key, f"{key}={draw.choice(WORDS)}"))
                )
            try:
                configuration.build(cls, layers, chosen)
                valid += 1
            except ConfigError as error:
                if "\n" in str(error) or len(str(error)) > 600:
                    problems.append(f"{chosen}: not one line")
            except BaseException as error:
                problems.append(f"{chosen}: {type(error).__name__}: {error}"[:300])
    if events:
        problems.append(f"events: {sorted(set(events))[:5]}")
    return count, problems


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Audit events that reading untrusted input must not cause."""
    events: list[str] = []
    _WATCHING.append(events)
    try:
        yield events
    finally:
        _WATCHING.pop()


_WATCHING: list[list[str]] = []
_FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect",
              "pickle.find_class", "marshal.loads", "os.remove", "os.rename", "shutil.rmtree",
              "os.mkdir", "os.fork", "ctypes.dlopen")  # fmt: skip
sys.addaudithook(
    lambda event, _: _WATCHING[-1].append(event) if _WATCHING and event in _FORBIDDEN else None
)


def checkpoints(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Mutated bytes are refused or change nothing; a mutated content is refused, or learns on."""
    agent = make(name, folder)
    agent.learn(callback=lambda a, row: False)
    path, mutated = folder / f"{name}.ckpt", folder / f"{name}-mutated.ckpt"
    agent.save(path)
    original, content = load_checkpoint(path), path.read_bytes()
    agent.restore(original, path)  # imports what that needs
    draw, problems, trials = random.Random(3), [], 0
    for trial in itertools.takewhile(lambda _: not late(), range(count)):
        trials += 1
        if trial % 2:
            damaged = bytearray(content)
            for _ in range(draw.randrange(1, 4)):
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            if draw.random() < 0.3:
                del damaged[draw.randrange(len(damaged)) :]
            mutated.write_bytes(damaged)
        else:
            _mutate_content(path, mutated, draw)
        problem = ""
        with watched() as events:
            try:
                tree = load_checkpoint(mutated)
                if trial % 2:
                    problem = "" if same(tree, original) else "damaged bytes loaded as something"
                else:
                    agent.restore(tree, mutated)
            except CheckpointError as error:
                tree, problem = None, "not one line" if "\n" in str(error) else ""
            except BaseException as error:
                tree, problem = None, f"{type(error).__name__}: {error}"[:300]
        if tree is not None and not trial % 2:
            problem = _apart(lambda: agent.learn(agent.num_timesteps + 1) and "")
        problem = f"events: {sorted(set(events))[:5]}" if events else problem
        problems += [f"trial {trial}: {problem}"] if problem else []
    return trials, problems


def _mutate_content(path: Path, output: Path, draw: random.Random) -> None:
    """Another state.json, with CRCs that are right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    tree = json.loads(members["state.json"])
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            nodes.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(tree["tree"])
    for _ in range(draw.randrange(1, 3)):
        node, key = draw.choice(nodes)
        values = (None, -1, 2**62, 1e308, "x", [], {}, True, [[1]], {"a": 1}, 0)
        if isinstance(node, dict) and draw.random() < 0.3:
            node.pop(key, None)
        elif isinstance(node, dict) or key < len(node):
            node[key] = draw.choice(values)
    members["state.json"] = json.dumps(tree).encode()
    if draw.random() < 0.1:
        members["state.safetensors"] = _with_another_type(members["state.safetensors"], draw)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def _with_another_type(content: bytes, draw: random.Random) -> bytes:
    """Another type of the same size for one tensor of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    entry = header[draw.choice(list(header))]
    kinds: tuple[tuple[str, ...], ...] = (
        ("F32", "I32"),
        ("F64", "I64"),
        ("U8", "BOOL", "I8"),
        ("F16", "I16"),
    )
    for kind in kinds:
        if entry["dtype"] in kind:
            entry["dtype"] = draw.choice([other for other in kind if other != entry["dtype"]])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def datasets(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Mutated files of data, each read in a process of its own with limited memory and time.

    By turns: what we write (HDF5, whose checksums notice every change), its Minari metadata (JSON
    without checksums, whose facts of a task may change), HDF5 as D4RL writes it (whose numbers may
    change), the arrays of a cache (likewise), and npz for `python -m mi` (checksums).
    """
    import h5py
    import numpy as np

    root = dataset(folder)
    family = root / "corro" / "point-robot"
    data = family / "task-001-mixed-v0" / "data"
    flat, npz = folder / "flat.hdf5", folder / "data.npz"
    draw, problems = random.Random(4), []
    normal = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    with h5py.File(flat, "w") as file:
        file["observations"], file["actions"] = normal[:, :3], normal[:, 3:5]
        file["rewards"], file["terminals"] = normal[:, 5], np.arange(40) % 10 == 9
    np.savez(npz, x=normal[:, 0], y=normal[:, 1])
    load(family)  # writes the cache
    cache = next(next((family / "cache").iterdir()).glob("states.npy"))

    def ours() -> list[Any]:
        return _tensors(load(family, cache=False))

    def arrays() -> list[Any]:
        data = load(family, cache=False)
        return [getattr(data, name) for name in ("states", "actions", "rewards", "lengths")]

    def anything(read: Callable[[], Any]) -> Callable[[], None]:
        return lambda: read() and None

    def estimated() -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = mi_main([str(npz), "x", "y", "--estimator", "gaussian"])
        if code:
            raise DataError(npz, "", "", output.getvalue().strip())
        return output.getvalue()

    kinds: list[tuple[Path, Callable[[], Any]]] = [
        (data / "main_data.hdf5", ours),
        (data / "metadata.json", arrays),
        (flat, anything(lambda: load(flat))),
        (cache, anything(lambda: _open(cache.parent))),
        (npz, estimated),
    ]
    kept, trials = [(file.read_bytes(), read()) for file, read in kinds], 0
    for trial in itertools.takewhile(lambda _: not late(), range(count)):
        trials += 1
        file, read = kinds[trial % len(kinds)]
        content, original = kept[trial % len(kinds)]
        file.write_bytes(_damaged(content, draw))
        problem = _apart(lambda r=read, o=original: "" if same(r(), o) else "other data")
        problems += [f"trial {trial}, {file.name}: {problem}"] if problem else []
        file.write_bytes(content)
    return trials, problems


def _damaged(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randrange(1, 6)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    if draw.random() < 0.2:
        del damaged[draw.randrange(len(damaged)) :]
    return bytes(damaged)


def _apart(work: Callable[[], Any]) -> str:
    """What is wrong in a process with limited memory and time: what `work` returns, or raises.

    One line about data, settings or a NaN is nothing wrong.
    """
    said, saying = os.pipe()
    pid = os.fork()
    if not pid:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        signal.alarm(300)
        text = ""
        try:
            with watched() as events:
                text = work()
        except (DataError, ConfigError, NonFiniteError) as error:
            text = f"not one line: {error}" if "\n" in str(error) else ""
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        if events:
            text = f"events {sorted(set(events))}"
        os.write(saying, text.encode(errors="replace")[:1000])
        os._exit(0)
    os.close(saying)
    with os.fdopen(said, errors="replace") as pipe:
        text = pipe.read()
    code = wait(pid)
    return text if code == 0 else f"killed by signal {-code}"


def _tensors(data: TaskData) -> list[Any]:
    return [v for v in vars(data).values() if isinstance(v, torch.Tensor)]

"""What happens when things go wrong.

    python benchmarks/trust.py <campaign|all> [count=N] [minutes=M] [agents=slim,masd,…]

    kill         kill -9 at random moments; the same command goes on, bit for bit
    signals      SIGTERM, SIGINT, SIGUSR1 at random moments
    disk         a full, a read-only and a deleted directory
    same         the same seed twice, and with evaluation and prediction in between
    nan          NaN in observations, rewards, actions, parameters, gradients and Adam's moments
    configs      mutated settings: one clear error, or a configuration
    checkpoints  mutated files and mutated contents: one clear error, or the identical tree
    datasets     mutated HDF5, Minari and npz files: one clear error, or the identical data
    workers      workers of foreign environments that die, hang or raise
    soak         growth of memory and file descriptors; count is seconds

Runs are configs/smoke/<agent> in forked processes, so that a start costs no imports, and end with
an evaluation instead of a report, so that signals hit the learning. Every campaign
is one function that returns how many trials it made and what was wrong; results/trust/trust.csv has
a row per campaign and agent, the newest.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import torch

import envs
import train
from agents import AGENTS, CheckpointError, ConfigError, NonFiniteError
from agents.core import config as configuration
from agents.core.checkpoint import load_checkpoint
from agents.core.run import Run, replay
from envs.adapt import from_gymnasium
from envs.base import SimulationError
from envs.data import TaskData, _open, load, save
from envs.hdf5 import DataError
from mi.__main__ import main as mi_main

Problems = list[str]
_DEADLINE = [math.inf]


def late() -> bool:
    """Whether the campaign's minutes are over; the trials so far are recorded."""
    return time.monotonic() > _DEADLINE[0]


STEPS = {"slim": 800, "masd": 800, "acorm": 600, "acorm-mappo": 600, "corro": 60, "infopower": 300}


def dataset(folder: Path) -> Path:
    """A random policy's trajectories of four point-robots."""
    root = folder / "data"
    if root.exists():
        return root
    env: Any = envs.make("point-robot", 1, num_tasks=4)
    generator = torch.Generator().manual_seed(0)
    for tier in ("mixed", "ood"):
        actions = 2 * torch.rand(4, 6, 10, 2, generator=generator) - 1
        walked = torch.cat([torch.zeros(4, 6, 1, 2), 0.1 * actions.cumsum(2)], 2)
        rewards = -(walked[:, :, 1:] - env.tasks[:, None, None]).norm(dim=-1)
        data = TaskData.build(
            walked, actions, rewards, tasks=env.tasks,
            behaviour=torch.arange(4)[:, None].expand(4, 6).clone(),
            training=torch.arange(4) < 3, references=torch.tensor([[-10.0, -4.0]]).repeat(4, 1),
            family="point-robot", tier=tier,
        )  # fmt: skip
        save(data, root)
    return root


def settings(name: str, folder: Path) -> list[str]:
    more = [f"dataset={dataset(folder)}"] if name == "corro" else []
    return [f"total_timesteps={STEPS[name]}", *more]


def make(name: str, folder: Path, **overrides: Any) -> Any:
    """A smoke agent in this process."""
    layers, kind = train._layers(f"smoke/{name}")
    texts = [*settings(name, folder), *(f"{k}={v}" for k, v in overrides.items())]
    return AGENTS[kind](config=configuration.build(AGENTS[kind].Config, layers, texts))


# ---- runs in forked processes


def start(name: str, run: Path, folder: Path) -> int:
    """Begin `train.py smoke/<name>` in a fork; returns its process id."""
    sys.stdout.flush()
    log = folder / f"{run.name}.log"
    log.unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 70
    os.environ["INFOMAX_PROCESSORS"] = "1"
    for agent in AGENTS.values():  # plots and videos would take most of the time of these runs
        agent.report = lambda self, directory: self.evaluate()
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = train.main([f"smoke/{name}", f"run={run}", *settings(name, folder)])
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def differences(a: Path, b: Path) -> Problems:
    """What two finished runs do not have in common."""
    found = []
    first, second = (load_checkpoint(run / "last.ckpt") for run in (a, b))
    if not same(first, second):
        found.append("another final checkpoint")
    rows = []
    for run in (a, b):
        with (run / "metrics.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        rows.append([{k: v for k, v in row.items() if not k.startswith("time/")} for row in table])
    if rows[0] != rows[1]:
        found.append("other rows of metrics")
    if (a / "done.json").read_text() != (b / "done.json").read_text():
        found.append("other results")
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two trees are the same bit for bit."""
    if isinstance(a, torch.Tensor):
        equal = isinstance(b, torch.Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return equal and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def whole(name: str, folder: Path) -> tuple[Path, float]:
    """An uninterrupted run, and the seconds it takes."""
    run, began = folder / f"{name}-whole", time.monotonic()
    code = wait(start(name, run, folder))
    assert code == 0, (folder / f"{run.name}.log").read_text()[-2000:]
    return run, time.monotonic() - began


def interrupted(name: str, count: int, folder: Path, numbers: list[int]) -> tuple[int, Problems]:
    """Runs that get signals at random moments until `count` of them hit a run that was learning."""
    reference, seconds = whole(name, folder)
    draw, problems, hits, index = random.Random(0), [], 0, 0
    run = folder / f"{name}-0"
    while True:
        pid = start(name, run, folder)
        count = hits if late() else count
        if hits < count:
            time.sleep(draw.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, numbers[hits % len(numbers)])
        code = wait(pid)
        if code == 0:
            problems += differences(reference, run)
            index += 1
            run = folder / f"{name}-{index}"
            if hits >= count:
                return hits, problems
            continue
        hits += 1
        if code not in (75, 130) and -code not in numbers:
            problems.append(f"exit code {code}: {(folder / f'{run.name}.log').read_text()[-300:]}")
            return hits, problems
        if (run / "last.ckpt").exists():
            try:
                load_checkpoint(run / "last.ckpt")
            except CheckpointError as error:
                problems.append(str(error))


# ---- campaigns: (agent, count, folder) -> trials, problems


def kill(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    return interrupted(name, count, folder, [signal.SIGKILL])


def signals(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    return interrupted(name, count, folder, [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])


def disk(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Each ends with exit code 2, one line, and the previous checkpoint as it was."""
    reference, _ = whole(name, folder)
    size = (reference / "last.ckpt").stat().st_size
    problems, trials = [], 0
    for _ in range(count):
        for kind in ("full", "read-only", "deleted"):
            mount = folder / "mount"
            mount.mkdir(exist_ok=True)
            # Full: there is room for one checkpoint, and not for its successor beside it.
            room = int(1.6 * size) + 65536 if kind == "full" else 8 * size + (1 << 20)
            options = f"size={max(room, 1 << 16)}"
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)])
            if done.returncode:
                raise common.Skipped("disk: needs the right to mount a tmpfs")
            try:
                run = mount / "run"
                if kind == "read-only":
                    run.mkdir()
                    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
                pid = start(name, run, folder)
                while kind != "read-only" and not (run / "last.ckpt").exists():
                    time.sleep(0.002)
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                        break
                if kind == "deleted":
                    shutil.rmtree(run, ignore_errors=True)
                code = wait(pid)
                trials += 1
                log = (
                    (mount / "run.log") if (mount / "run.log").exists() else run.with_suffix(".log")
                )
                said = log.read_text() if log.exists() else ""
                if code != 2 or "Traceback" in said:
                    problems.append(f"{kind}: exit code {code}: {said[-300:]}")
                if kind != "deleted" and (run / "last.ckpt").exists():
                    load_checkpoint(run / "last.ckpt")
            finally:
                subprocess.run(["umount", "-l", str(mount)], check=False)
    return trials, problems


def repeated(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """The same seed gives the same tree, whatever is looked at in between."""

    def looked_at(agent: Any, row: dict[str, float]) -> None:
        agent.evaluate(episodes=4)
        observation = agent.env.last_obs if hasattr(agent.env, "last_obs") else None
        if observation is not None and name not in ("acorm", "acorm-mappo"):
            agent.predict(observation)

    problems = []
    for seed in range(count):
        first = make(name, folder, seed=seed).learn().state_dict()
        second = make(name, folder, seed=seed).learn(callback=looked_at).state_dict()
        other = make(name, folder, seed=seed + 1000).learn().state_dict()
        if not same(first, second):
            problems.append(f"seed {seed}: evaluation in between changed the agent")
        if same(first["parts"], other["parts"]):
            problems.append(f"seed {seed}: another seed gives the same agent")
    return count, problems


PLACES = ("observation", "reward", "action", "parameter", "gradient", "moment")


def nan(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Caught within one log interval with its source named; no checkpoint holds it.

    `replay` meets the same message from what the run directory keeps, without the fault none.
    """
    problems, trials, draw = [], 0, random.Random(1)
    for trial in itertools.takewhile(lambda _: not late(), range(count)):
        for place in PLACES:
            run = folder / f"{name}-{place}-{trial}"
            settings = {"log_interval": 1, "checkpoint_interval": 1, "seed": trial}
            agent = make(name, folder, **settings)
            if place in ("observation", "reward", "action") and name == "corro":
                continue  # learns from data alone
            if place == "action" and name in ("acorm", "acorm-mappo"):
                continue  # whose actions are integers
            if place == "observation" and not agent.env.reset()[0].is_floating_point():
                continue
            fault = Fault(
                place, draw.randrange(2, 12), draw.randrange(agent.num_envs),
                draw.choice((math.nan, math.inf)),
            )  # fmt: skip
            fault.into(agent)
            trials += 1
            silence = contextlib.redirect_stdout(io.StringIO())
            with silence, Run(run, name, {"seed": trial}) as files:
                agent.run = files
                try:
                    agent.learn(total_timesteps=10**9, callback=lambda a, row: a.num_updates < 60)
                    if fault.happened is None:  # no more gradients of these parameters
                        trials -= 1
                    else:
                        problems.append(f"{place} at {fault.at}: not noticed")
                    continue
                except NonFiniteError as error:
                    problems += [f"{place}: {p}" for p in fault.objections(agent, str(error))]
            for path in run.glob("*.ckpt"):
                tree = load_checkpoint(path)
                del tree["returns"]  # NaN until an episode ends
                if not _finite(tree):
                    problems.append(f"{place}: a checkpoint holds it")
            again = make(name, folder, **settings)
            fault.repeated().into(again)
            then, now = replay(again, run)
            if now != then:
                problems.append(f"{place}: {then!r} repeated as {now!r}")
            if trial == 0 and replay(make(name, folder, **settings), run)[1] is not None:
                problems.append(f"{place}: comes again without the fault")
            shutil.rmtree(run)
    return trials, problems


@dataclass
class Fault:
    """A NaN or infinity somewhere in an update; a function of the agent's progress, as bugs are.

    Args:
        place: one of `PLACES`.
        at: the first update in which it can happen.
        row: the environment.
        value: NaN or infinity.
        optimizer: whose parameters; those that the last update used if None.
    """

    place: str
    at: int
    row: int
    value: float
    optimizer: int | None = None
    happened: int | None = None

    def repeated(self) -> Fault:
        """The same once more."""
        assert self.happened is not None
        return replace(self, at=self.happened, happened=None)

    def objections(self, agent: Any, error: str) -> Problems:
        """What is wrong with how it was noticed."""
        found = []
        if self.happened is None or agent.num_updates - self.happened > 1:
            found.append(f"happened in update {self.happened}, noticed in {agent.num_updates}")
        source, _, what = error.partition(":")
        if not source or not what.startswith(" NaN or infinity") or "\n" in error:
            found.append(f"no source in {error!r}")
        if self.place in ("observation", "reward") and (
            source != self.place or f"in environment {self.row};" not in error
        ):
            found.append(f"environment {self.row} is not named in {error!r}")
        return found

    def into(self, agent: Any) -> None:
        """Put it into an agent."""
        step, act, update = agent.env.step, agent.act, agent.update
        optimizers = [p for p in agent.parts.values() if isinstance(p, torch.optim.Optimizer)]
        steps, waiting = [0.0] * len(optimizers), True

        def due() -> bool:
            nonlocal waiting
            if not waiting or agent.num_updates < self.at:
                return False
            waiting, self.happened = False, agent.num_updates
            return True

        def spoiled(value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            value[self.row] = self.value
            return value

        def faulty_step(action: Any) -> Any:
            obs, reward, *rest = step(action)
            if self.place == "reward" and due():
                reward = spoiled(reward)
            if self.place == "observation" and due():
                obs = spoiled(obs)
            return obs, reward, *rest

        def faulty_act(obs: Any, state: Any, deterministic: bool) -> Any:
            action, state = act(obs, state, deterministic)
            return (spoiled(action) if self.place == "action" and due() else action), state

        def faulty_update() -> Any:
            before = list(steps)
            for i, optimizer in enumerate(optimizers):
                steps[i] = sum(float(s.get("step", 0)) for s in optimizer.state.values())
            used = [i for i in range(len(steps)) if steps[i] > before[i]]  # by the last update
            chosen = used[:1] if self.optimizer is None else [self.optimizer]
            if self.place in ("parameter", "gradient", "moment") and chosen and due():
                self.optimizer = chosen[0]
                self._spoil(agent, optimizers[self.optimizer])
            return update()

        agent.env.step, agent.act, agent.update = faulty_step, faulty_act, faulty_update

    @torch.no_grad()
    def _spoil(self, agent: Any, optimizer: torch.optim.Optimizer) -> None:
        parameter = next(p for p in optimizer.param_groups[0]["params"] if p in optimizer.state)
        first = (0,) * parameter.dim()
        if self.place == "parameter":
            parameter[first] = self.value
        elif self.place == "moment":
            optimizer.state[parameter]["exp_avg"][first] = self.value
        else:

            def spoil(gradient: torch.Tensor) -> torch.Tensor:
                self.happened = agent.num_updates if self.happened is None else self.happened
                return torch.full_like(gradient, self.value)

            self.happened = None  # until a gradient gets there
            parameter.register_hook(spoil)


def _finite(tree: Any) -> bool:
    if isinstance(tree, torch.Tensor):
        return not tree.is_floating_point() or bool(torch.isfinite(tree).all())
    if isinstance(tree, dict):
        return all(map(_finite, tree.values()))
    return all(map(_finite, tree)) if isinstance(tree, (list, tuple)) else True


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
    with _watched() as events:
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
def _watched() -> Iterator[list[str]]:
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
    """Mutated bytes are refused or change nothing; a mutated content is refused or fits."""
    agent = make(name, folder)
    agent.learn(callback=lambda a, row: False)
    path, mutated = folder / f"{name}.ckpt", folder / f"{name}-mutated.ckpt"
    agent.save(path)
    original, content = load_checkpoint(path), path.read_bytes()
    draw, problems, trials = random.Random(3), [], 0
    with _watched() as events:
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
            try:
                tree = load_checkpoint(mutated)
                if trial % 2 and not same(tree, original):
                    problems.append(f"trial {trial}: damaged bytes loaded as something else")
                elif not trial % 2:
                    agent.restore(tree, mutated)
            except CheckpointError as error:
                if "\n" in str(error):
                    problems.append(f"trial {trial}: not one line")
            except BaseException as error:
                problems.append(f"trial {trial}: {type(error).__name__}: {error}"[:300])
    if events:
        problems.append(f"events: {sorted(set(events))[:5]}")
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
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)


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
        problem = _read_apart(read, original)
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


def _read_apart(read: Callable[[], Any], original: Any) -> str:
    """What is wrong with how a process with limited memory and time reads; "" for nothing."""
    import resource

    said, saying = os.pipe()
    pid = os.fork()
    if not pid:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
        signal.alarm(20)
        code, text = 0, ""
        try:
            with _watched() as events:
                if not same(read(), original):
                    code, text = 4, "other data"
        except (DataError, ConfigError) as error:
            code, text = (5, f"not one line: {error}") if "\n" in str(error) else (0, "")
        except BaseException as error:
            code, text = 3, f"{type(error).__name__}: {error}"
        if events:
            code, text = 6, f"events {sorted(set(events))}"
        os.write(saying, text.encode(errors="replace")[:1000])
        os._exit(code)
    os.close(saying)
    with os.fdopen(said, errors="replace") as pipe:
        text = pipe.read()
    code = wait(pid)
    return text if code >= 0 else f"killed by signal {-code}"


def _tensors(data: TaskData) -> list[Any]:
    return [v for v in vars(data).values() if isinstance(v, torch.Tensor)]


def workers(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Copies of a foreign environment in workers, one of which dies, hangs or raises, `count` each.

    The error comes in time and says which worker it was; nothing that it started is left, the
    simulator included that every copy here starts as a process of its own.
    """
    draw, problems, timeout = random.Random(5), [], 3.0
    trials = 0
    for trial in itertools.takewhile(lambda _: not late(), range(3 * count)):
        trials += 1
        kind = ("kill", "hang", "raise")[trial % 3]
        copy, step = draw.randrange(4), draw.randrange(30)
        env = from_gymnasium(foreign(kind), 4, workers=2, timeout=60)
        pool: Any = env._rows  # type: ignore[attr-defined]
        pids = [process.pid for process in pool._processes]
        pids += [child for pid in pids for child in _children(pid)]
        if len(pids) != 2 + 4:
            problems.append(f"{kind}: {len(pids)} processes instead of 6")
        pool.timeout = timeout
        env.reset()
        action = torch.zeros(4, dtype=torch.int64)
        began = time.monotonic()
        try:
            for _ in range(step):
                env.step(action)
            began, action[copy] = time.monotonic(), 1
            env.step(action)
            problems.append(f"{kind}: not noticed")
        except SimulationError as error:
            named = f"worker {copy // 2} (environments"
            if not str(error).startswith(named) or f"at environment {copy}" not in str(error):
                problems.append(f"{kind}: names not worker {copy // 2}: {error}"[:200])
        seconds = time.monotonic() - began
        if seconds > timeout + 5:
            problems.append(f"{kind}: noticed after {seconds:.1f} s")
        time.sleep(0.05)  # init reaps what is left to it
        problems += [f"{kind}: process {pid} is left" for pid in pids if _alive(pid)]
        env.close()
    return trials, problems


def foreign(failure: str) -> Callable[[], Any]:
    """Makes environments that fail as told when their action is 1; a class that goes by value."""
    import gymnasium as gym
    import numpy as np

    class Foreign(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Discrete(2)
        simulator: Any = None

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            import os
            import signal
            import time

            if action == 1:
                if failure == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if failure == "hang":
                    time.sleep(10**6)
                raise RuntimeError("the arm is stuck")
            return np.zeros(2, np.float32), 0.0, False, False, {}

    parent = os.getpid()

    def make() -> Any:
        import os
        import subprocess

        env = Foreign()
        if os.getpid() != parent:  # the first copy, in this process, shows the spaces
            env.simulator = subprocess.Popen(["sleep", "1000"])
        return env

    return make


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie that waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def soak(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Learns for `count` seconds; growth after the first third of the time."""
    agent = make(name, folder, log_interval=5)
    began, marks = time.monotonic(), []

    def measure(agent: Any, row: dict[str, float]) -> bool:
        passed = time.monotonic() - began
        if passed > count / 3 * (1 + len(marks)):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            marks.append((pages * 4096 / 2**20, len(os.listdir("/proc/self/fd"))))
        return passed < count

    agent.learn(total_timesteps=10**12, callback=measure)
    if len(marks) < 2:
        return count, ["too few measurements"]
    growth = (marks[-1][0] / marks[0][0] - 1) * 600 / (count * (len(marks) - 1) / 3)
    problems = [f"memory grows by {growth:.1%} in 10 minutes"] if growth > 0.01 else []
    return count, problems + (["file descriptors grow"] if marks[-1][1] > marks[0][1] else [])


CAMPAIGNS: dict[str, tuple[Callable[[str, int, Path], tuple[int, Problems]], int]] = {
    "kill": (kill, 200), "signals": (signals, 150), "disk": (disk, 10), "same": (repeated, 3),
    "nan": (nan, 50), "configs": (configs, 10_000), "checkpoints": (checkpoints, 10_000),
    "datasets": (datasets, 10_000), "workers": (workers, 20), "soak": (soak, 3600),
}  # fmt: skip
"""Name -> the campaign and its full count."""
ONCE = ("datasets", "workers")
"""Campaigns that are no agent's."""


def campaign(which: str, name: str, count: int) -> tuple[int, Problems]:
    """One campaign of one agent in a directory that is removed afterwards."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return CAMPAIGNS[which][0](name, count, Path(folder))


def record(which: str, name: str, trials: int, problems: Problems) -> None:
    """Put a row into trust.csv."""
    path = common.ROOT / "benchmarks" / "results" / "trust" / "trust.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [r for r in csv.DictReader(file) if (r["campaign"], r["agent"]) != (which, name)]
    first = " ".join(problems[0].split())[:200] if problems else ""
    new = {"campaign": which, "agent": name, "trials": trials, "full": CAMPAIGNS[which][1],
           "problems": len(problems), "first": first}  # fmt: skip
    common.write_csv(path, sorted([*rows, new], key=lambda r: (r["campaign"], r["agent"])))


def main(arguments: list[str]) -> int:
    options = dict(a.split("=", 1) for a in arguments if "=" in a)
    names = [a for a in arguments if "=" not in a]
    if len(names) != 1 or names[0] not in (*CAMPAIGNS, "all"):
        print(__doc__)
        return 2
    failed = 0
    for which in CAMPAIGNS if names[0] == "all" else names:
        for name in ["-"] if which in ONCE else options.get("agents", ",".join(AGENTS)).split(","):
            began = time.monotonic()
            _DEADLINE[0] = began + 60 * float(options.get("minutes", "inf"))
            try:
                trials, problems = campaign(
                    which, name, int(options.get("count", CAMPAIGNS[which][1]))
                )
            except common.Skipped as reason:
                print(f"{which:12} {name:12} skipped: {reason}")
                continue
            record(which, name, trials, problems)
            seconds = time.monotonic() - began
            counts = f"{trials:6} trials {len(problems):4} problems {seconds:6.0f} s"
            print(f"{which:12} {name:12} {counts}", flush=True)
            for problem in problems[:3]:
                print(f"    {problem[:300]}", flush=True)
            failed += bool(problems)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

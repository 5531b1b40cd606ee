"""What happens when things go wrong.

    python benchmarks/trust.py <campaign|all> [count=N] [agents=slim,masd,…]

    kill         kill -9 at random moments; the same command goes on, bit for bit
    signals      SIGTERM, SIGINT, SIGUSR1 at random moments
    disk         a full, a read-only and a deleted directory
    same         the same seed twice, and with evaluation and prediction in between
    nan          NaN in observations, rewards, actions, parameters, gradients and Adam's moments
    configs      mutated settings: one clear error, or a configuration
    checkpoints  mutated files and mutated contents: one clear error, or the identical tree
    datasets     mutated HDF5 files of an offline dataset (corro)
    soak         growth of memory and file descriptors; count is seconds

Runs are configs/smoke/<agent> in forked processes, so that a start costs no imports. Every campaign
is one function that returns how many trials it made and what was wrong; results/trust/trust.csv has
a row per campaign and agent, the newest.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
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
from agents.core.run import Run
from envs.data import TaskData, load, save
from envs.hdf5 import DataError

Problems = list[str]
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
    """Caught within one log interval with its source named; no checkpoint holds it."""
    problems, trials, draw = [], 0, random.Random(1)
    for trial in range(count):
        for place in PLACES:
            run = folder / f"{name}-{place}-{trial}"
            agent = make(name, folder, log_interval=1, checkpoint_interval=1)
            if place in ("observation", "reward", "action") and name == "corro":
                continue  # learns from data alone
            if place == "action" and name in ("acorm", "acorm-mappo"):
                continue  # whose actions are integers
            if place == "observation" and not agent.env.reset()[0].is_floating_point():
                continue
            at = draw.randrange(2, 6)
            injected = _inject(agent, place, at, draw)
            trials += 1
            silence = contextlib.redirect_stdout(io.StringIO())
            with silence, Run(run, name, {"seed": trial}) as files:
                agent.run = files
                try:
                    agent.learn(total_timesteps=10**9, callback=lambda a, row: a.num_updates < 60)
                    problems.append(f"{place} at {at}: not noticed")
                except NonFiniteError as error:
                    if ":" not in str(error):
                        problems.append(f"{place}: no source in {str(error)!r}")
                    if injected and agent.num_updates - injected[0] > 1:
                        late = agent.num_updates - injected[0]
                        problems.append(f"{place}: noticed {late} updates later")
            if files.last.exists() and not _finite(load_checkpoint(files.last)["parts"]):
                problems.append(f"{place}: a checkpoint holds it")
    return trials, problems


def _inject(agent: Any, place: str, at: int, draw: random.Random) -> list[int]:
    """Put a NaN somewhere in the update `at`; the list gets the update in which it happened."""
    happened: list[int] = []
    original_step, original_act, original_update = agent.env.step, agent.act, agent.update
    row = draw.randrange(agent.num_envs)

    def due() -> bool:
        if happened or hasattr(agent, "spoiled") or agent.num_updates < at:
            return False
        happened.append(agent.num_updates)
        return True

    def step(action: Any) -> Any:
        obs, reward, *rest = original_step(action)
        if place == "reward" and due():
            reward = reward.clone()
            reward[row] = torch.nan
        if place == "observation" and due():
            obs = obs.clone()
            obs[row] = torch.nan
        return obs, reward, *rest

    def act(obs: Any, state: Any, deterministic: bool) -> Any:
        action, state = original_act(obs, state, deterministic)
        if place == "action" and action.is_floating_point() and due():
            action = action.clone()
            action[row] = torch.nan
        return action, state

    def update() -> Any:
        _spoil(agent, due, place, happened)
        return original_update()

    agent.env.step, agent.act, agent.update = step, act, update
    return happened


def _spoil(agent: Any, due: Callable[[], bool], place: str, happened: list[int]) -> None:
    optimizers = [p for p in agent.parts.values() if isinstance(p, torch.optim.Optimizer)]
    before, now = getattr(agent, "stepped", {}), {}
    for i, optimizer in enumerate(optimizers):
        now[i] = sum(float(state.get("step", 0)) for state in optimizer.state.values())
    agent.stepped = now
    used = [o for i, o in enumerate(optimizers) if now[i] > before.get(i, 0)]  # by the last update
    if place not in ("parameter", "gradient", "moment") or not used or not due():
        return
    parameter = next(p for p in used[0].param_groups[0]["params"] if p in used[0].state)
    with torch.no_grad():
        if place == "parameter":
            parameter[(0,) * parameter.dim()] = torch.nan
        elif place == "moment":
            used[0].state[parameter]["exp_avg"][(0,) * parameter.dim()] = torch.nan
        else:
            happened.clear()  # it happens when a gradient gets there

            def spoil(gradient: torch.Tensor) -> torch.Tensor:
                happened[:] = happened or [agent.num_updates]
                return gradient * torch.nan

            parameter.register_hook(spoil)
            agent.spoiled = True


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
              "ctypes.dlopen")  # fmt: skip
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
    draw, problems = random.Random(3), []
    with _watched() as events:
        for trial in range(count):
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
    return count, problems


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
    """Mutated HDF5 files, each read in a process of its own with limited memory and time."""
    if name != "corro":
        return 0, []
    import resource

    root = dataset(folder)
    file = next(path for path in sorted(root.rglob("*.hdf5")) if "mixed" in str(path))
    content, original, draw, problems = file.read_bytes(), load(str(root)), random.Random(4), []
    for trial in range(count):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        file.write_bytes(damaged)
        pid = os.fork()
        if not pid:
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            signal.alarm(20)
            code = 3
            try:
                code = 0 if all(map(same, _tensors(load(str(root))), _tensors(original))) else 4
            except (DataError, ConfigError) as error:
                code = 5 if "\n" in str(error) else 0
            except BaseException as error:
                os.write(2, f"trial {trial}: {type(error).__name__}: {error}\n".encode()[:300])
            os._exit(code)
        code = wait(pid)
        meaning = {3: "a foreign exception", 4: "other data", 5: "not one line"}
        if code:
            problems.append(f"trial {trial}: {meaning.get(code, f'killed by signal {-code}')}")
    file.write_bytes(content)
    return count, problems


def _tensors(data: TaskData) -> list[Any]:
    return [v for v in vars(data).values() if isinstance(v, torch.Tensor)]


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
    "datasets": (datasets, 10_000), "soak": (soak, 3600),
}  # fmt: skip
"""Name -> the campaign and its full count."""


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
        for name in options.get("agents", ",".join(AGENTS)).split(","):
            if which == "datasets" and name != "corro":
                continue
            began = time.monotonic()
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

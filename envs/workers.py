"""Copies of a gymnasium environment, stepped in this process (`Rows`) or in workers (`WorkerPool`).

A worker process steps many copies. Observations, actions, rewards and flags lie in memory that all
processes share, so a step costs one small message to each worker and one back, however many copies
it holds. (`gymnasium.vector.AsyncVectorEnv` has one process per copy.)

Workers are started with `exec`, not by forking this process: its threads and its CUDA context do
not matter, and a script needs no `if __name__ == "__main__"`. Functions travel to them by
cloudpickle, and infos come back by pickle, as in gymnasium: over a socket pair between this process
and its children, never from a file.

Workers receive what they run by value: it refers to neither torch nor `envs`, whose import would
cost each of them seconds.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

import cloudpickle
import gymnasium as gym
import numpy as np

from envs.base import SimulationError

Arrays = dict[str, np.ndarray]
Layout = dict[str, tuple[tuple[int, ...], str]]
"""Arrays by name: shape and dtype."""

_SCALARS = (int, float, np.number, np.bool_)

# Runs in a worker before anything else. Schedulers send SIGTERM and its like to all processes of a
# job; only the parent decides when to end. When it dies, the kernel sends SIGIO for the pipe that
# only it has open for writing, which ends the worker's session even in a step that hangs.
_BOOT = """
import fcntl, json, os, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
channel, lifeline = int(sys.argv[1]), int(sys.argv[2])
fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
sys.path[:] = json.loads(sys.argv[3])
from multiprocessing.connection import Connection
import cloudpickle
connection = Connection(channel)
serve, arguments = cloudpickle.loads(connection.recv_bytes())
serve(connection, *arguments)
"""


class Rows:
    """Copies of an environment that write what they return into rows of arrays.

    Args:
        envs: the copies.
        arrays: `action`, `obs`, `reward`, `terminated`, `truncated`, `ended`, `final_obs`, and a
            pair `<name>` and `final_<name>` for each entry of `context`; [K, ...] each.
        context: entries of the copies' infos that belong to the observation.
        channels: axis of an image that `obs` has first; None for no image.
        first: index of the first copy, for messages.
        current: int64 [1], the index of the copy that is at work.
    """

    def __init__(
        self,
        envs: Sequence[gym.Env[Any, Any]],
        arrays: Arrays,
        context: Sequence[str] = (),
        channels: int | None = None,
        first: int = 0,
        current: np.ndarray | None = None,
    ) -> None:
        self.envs, self.arrays, self.first = list(envs), arrays, first
        self.current = np.zeros(1, np.int64) if current is None else current
        self._kept = ("obs", *context)
        self._context = tuple(context)
        self._obs = self._seen = arrays["final_obs"]
        self._start = arrays["obs"]
        if channels is not None:  # views in the copies' own layout
            self._seen = np.moveaxis(self._obs, 1, 1 + channels)
            self._start = np.moveaxis(self._start, 1, 1 + channels)
        self._shape = self._seen.shape[1:]

    def reset(
        self, rows: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None
    ) -> Arrays:
        """Reset copies; their infos as arrays, if these are all of the copies."""
        infos = []
        for i, seed in zip(rows, seeds, strict=True):
            self.current[0] = self.first + i
            obs, info = self.envs[i].reset(seed=seed, options=options)
            self._write(self._start, i, obs, info, "")
            infos.append(info)
        return columns(infos) if len(infos) == len(self.envs) else {}

    def step(self, same_step: bool) -> Arrays:
        """Step the copies with `action`, those in `ended` excepted, which are reset; their infos.

        Args:
            same_step: reset the copies whose episode ends, after `final_obs` was written.
        """
        arrays, infos = self.arrays, []
        action, ended = arrays["action"].copy(), arrays["ended"].tolist()  # a copy may keep its own
        reward, terminated, truncated = [], [], []
        for i, env in enumerate(self.envs):
            self.current[0] = self.first + i
            if ended[i]:
                (obs, info), (r, term, trunc) = env.reset(), (0.0, False, False)
            else:
                obs, r, term, trunc, info = env.step(action[i])
            self._write(self._seen, i, obs, info, "final_")
            reward.append(r)
            terminated.append(term)
            truncated.append(trunc)
            infos.append(info)
        arrays["reward"][:], arrays["terminated"][:] = reward, terminated
        arrays["truncated"][:] = truncated
        for name in self._kept:
            arrays[name][:] = arrays[f"final_{name}"]
        if same_step:
            done = arrays["terminated"] | arrays["truncated"]
            for i in np.flatnonzero(done).tolist():
                self.reset([i], [None], None)
        return columns(infos)

    def close(self) -> None:
        """Close the copies."""
        for env in self.envs:
            env.close()

    def _write(self, out: np.ndarray, i: int, obs: Any, info: dict[str, Any], prefix: str) -> None:
        shape = np.shape(obs)
        if shape != self._shape:  # numpy would broadcast
            raise ValueError(
                f"environment {self.first + i}: expected observation shape {self._shape}, "
                f"got {shape}"
            )
        out[i] = obs
        for name in self._context:
            self.arrays[prefix + name][i] = info[name]


def columns(infos: Sequence[dict[str, Any]]) -> Arrays:
    """What every row reports as numbers of one shape, [K, ...]: float32, int64 or bool."""
    stacked: Arrays = {}
    for name in infos[0] if infos else ():
        column = [info.get(name) for info in infos]
        kinds = set(map(type, column))
        scalars = all(issubclass(kind, _SCALARS) for kind in kinds)
        if not scalars and (kinds != {np.ndarray} or len(set(map(np.shape, column))) > 1):
            continue
        values = np.asarray(column)
        if values.dtype.kind in "biuf":
            kind = {"b": np.bool_, "f": np.float32}.get(values.dtype.kind, np.int64)
            stacked[name] = values.astype(kind, copy=False)
    return stacked


def require_same_spaces(env: gym.Env[Any, Any], spaces: Sequence[Any], index: int) -> None:
    """Raise ValueError unless copy `index` has the observation and the action space of the first.

    Raises:
        ValueError: names the space.
    """
    for name, expected in zip(("observation_space", "action_space"), spaces, strict=True):
        got = getattr(env, name)
        if expected != got:
            raise ValueError(f"environment {index}: expected {name} {expected}, got {got}")


class WorkerPool:
    """`Rows` in worker processes; see there.

    Args:
        make: makes one copy.
        num_envs: copies, N.
        workers: processes, at most N.
        spaces: observation and action space that every copy must have.
        layout: of the arrays, `Rows`'.
        context: see `Rows`.
        channels: see `Rows`.
        timeout: seconds a worker has to answer, whether it makes, resets or steps its copies.

    Attributes:
        arrays: [N, ...] each, in memory shared with the workers.

    Raises:
        SimulationError: a worker raised, died or did not answer in time; says which, and what it
            was doing. The other workers are then gone too.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env[Any, Any]],
        num_envs: int,
        workers: int,
        spaces: Sequence[Any],
        layout: Layout,
        context: Sequence[str] = (),
        channels: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.timeout = timeout
        self._chunks = [
            range(chunk[0], chunk[-1] + 1)
            for chunk in np.array_split(np.arange(num_envs), min(workers, num_envs))
        ]
        layout = {**layout, "current": ((len(self._chunks),), "int64")}
        memory = os.memfd_create("environments")
        self.arrays = share(memory, layout, create=True)
        self.arrays["current"][:] = -1
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._lifelines: list[int] = []
        self._ended: str | None = None
        self._requests = {same: cloudpickle.dumps(("step", (same,))) for same in (True, False)}
        mine = sys.modules[__name__]
        by_value = [mine, *(m for m in [sys.modules.get("envs.wrappers")] if m is not None)]
        for module in by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            for index, chunk in enumerate(self._chunks):
                arguments = (make, chunk, spaces, layout, memory, index, context, channels)
                self._start(memory, cloudpickle.dumps((serve, arguments)))
        except BaseException:
            self._kill()
            raise
        finally:
            for module in by_value:
                cloudpickle.unregister_pickle_by_value(module)
            os.close(memory)
        self._collect("make its environments")

    def reset(
        self, rows: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None
    ) -> Arrays:
        """See `Rows.reset`."""
        asked = dict(zip(rows, seeds, strict=True))
        requests = []
        for chunk in self._chunks:
            mine = [i for i in chunk if i in asked]
            local = ([i - chunk[0] for i in mine], [asked[i] for i in mine], options)
            requests.append(cloudpickle.dumps(("reset", local)))
        return self._ask("reset", requests)

    def step(self, same_step: bool) -> Arrays:
        """See `Rows.step`."""
        return self._ask("step", [self._requests[same_step]] * len(self._chunks))

    def close(self) -> None:
        """Close the copies and end the workers."""
        if self._ended is None:
            self._ended = "closed"
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.send_bytes(cloudpickle.dumps(("close", ())))
            deadline = time.monotonic() + min(self.timeout, 5.0)
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        self._kill()

    def _start(self, memory: int, work: bytes) -> None:
        here, there = Pipe()
        lifeline, writer = os.pipe()
        self._connections.append(here)
        self._lifelines.append(writer)
        fds = (there.fileno(), lifeline)
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        try:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-X", "faulthandler", "-c", _BOOT, *map(str, fds), path],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=(*fds, memory),
                    env={"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ},
                )
            )
        finally:
            there.close()
            os.close(lifeline)
        with contextlib.suppress(OSError):  # a worker that died is noticed when it should answer
            here.send_bytes(work)

    def _ask(self, task: str, requests: Sequence[bytes]) -> Arrays:
        if self._ended is not None:
            raise SimulationError(f"{task}: the workers are gone ({self._ended})")
        for connection, request in zip(self._connections, requests, strict=True):
            with contextlib.suppress(OSError):  # see above
                connection.send_bytes(request)
        return self._collect(task)

    def _collect(self, task: str) -> Arrays:
        """Wait for every worker's answer; what all of them report."""
        deadline = time.monotonic() + self.timeout
        infos: list[Arrays] = []
        for index, connection in enumerate(self._connections):
            try:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    self._fail(index, task, f"did not {task} within {self.timeout:g} s, was killed")
                failure, info = connection.recv()
            except (EOFError, OSError):
                self._fail(index, task, f"{self._end(index)} when it had to {task}")
            if failure is not None:
                self._fail(index, task, f"could not {task}", failure)
            infos.append(info)
        names = [name for name in infos[0] if all(name in info for info in infos)]
        return {name: np.concatenate([info[name] for info in infos]) for name in names}

    def _end(self, index: int) -> str:
        """How a worker whose connection is gone has ended."""
        try:
            code = self._processes[index].wait(5.0)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"left with code {code}"

    def _fail(self, index: int, task: str, what: str, trace: str = "") -> NoReturn:
        chunk, current = self._chunks[index], int(self.arrays["current"][index])
        message = f"worker {index} (environments {chunk[0]}..{chunk[-1]}) {what}"
        if current >= 0:
            message += f"; it was at environment {current}"
        if current >= 0 and task == "step":
            message += f", whose action was {self.arrays['action'][current].tolist()}"
        if trace:
            message += f": {trace.strip().splitlines()[-1]}"
        self._ended = message
        self._kill()
        raise SimulationError(f"{message}\n{trace}".rstrip())

    def _kill(self) -> None:
        for process in self._processes:  # with the processes that its environments have started
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        for connection in self._connections:
            connection.close()
        for lifeline in self._lifelines:
            os.close(lifeline)
        self._processes, self._connections, self._lifelines = [], [], []


def serve(
    connection: Connection,
    make: Callable[[], gym.Env[Any, Any]],
    chunk: range,
    spaces: Sequence[Any],
    layout: Layout,
    memory: int,
    index: int,
    context: Sequence[str],
    channels: int | None,
) -> None:
    """A worker's life: make the copies, then do as told until told to close."""
    everything = share(memory, layout)
    current = everything.pop("current")[index : index + 1]
    arrays = {name: array[chunk[0] : chunk[-1] + 1] for name, array in everything.items()}

    def make_rows() -> tuple[Rows, Arrays]:
        envs = []
        for i in chunk:
            current[0] = i
            envs.append(make())
            require_same_spaces(envs[-1], spaces, i)
        return Rows(envs, arrays, context, channels, chunk[0], current), {}

    rows: Any = None
    try:
        rows, info = make_rows()
        while True:
            current[0] = -1
            connection.send((None, info))
            task, arguments = cloudpickle.loads(connection.recv_bytes())
            info = getattr(rows, task)(*arguments)
            if task == "close":
                return
    except (EOFError, BrokenPipeError, ConnectionResetError):  # nobody is there any more
        return
    except BaseException:  # whatever a foreign environment does, SystemExit included
        with contextlib.suppress(OSError):
            connection.send((traceback.format_exc(), {}))


def share(memory: int, layout: Layout, create: bool = False) -> Arrays:
    """Arrays in an anonymous file that processes share; `create` gives it its size."""
    offsets, size = {}, 0
    for name, (shape, dtype) in layout.items():
        offsets[name] = size
        size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64  # cache lines
    if create:
        os.ftruncate(memory, max(size, 64))
    buffer = mmap.mmap(memory, max(size, 64))
    return {
        name: np.ndarray(shape, dtype, buffer, offsets[name])
        for name, (shape, dtype) in layout.items()
    }

"""A run: one directory that holds everything a training run leaves, and can be resumed from."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from agents.core import parallel
from agents.core.checkpoint import load_checkpoint, save_checkpoint
from agents.core.config import ConfigError, read_yaml, save_yaml
from agents.core.log import MetricsFile, NonFiniteError

if TYPE_CHECKING:
    from agents.base import Agent

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


class Run:
    """Files, lock and signals of a run directory.

    `config.yaml starts.jsonl metrics.csv last.ckpt best.ckpt tb/ video/ plots/ done.json`, and
    `crash.json crash.ckpt` after a NaN or infinity (`crash-<rank>.json` if another process of
    `torchrun` met it). Use as a context manager: inside, SIGTERM, SIGUSR1 and SIGINT set `stop`
    instead of killing the process.

    Args:
        directory: created if missing.
        agent: name of the agent or baseline.
        config: plain dict of the configuration, compared with the one the directory already holds.
        leads: whether this process writes; the others of `torchrun` only read where it stands.

    Raises:
        ConfigError: the directory belongs to another configuration, or another process uses it.
    """

    def __init__(
        self, directory: Path, agent: str, config: Mapping[str, Any], leads: bool = True
    ) -> None:
        self.directory, self.leads = directory, leads
        self.stop: signal.Signals | None = None
        self._tensorboard: SummaryWriter | None = None
        self._lock = None
        if not leads:
            self.checkpoint = load_checkpoint(self.last) if self.last.exists() else None
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / ".lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"run={directory}: {error.strerror}; expected a writable directory"
            ) from None
        if not _locked(self._lock):
            raise ConfigError(f"run={directory}: another process is using this directory")
        self._compare({"agent": agent, **config})
        self.checkpoint = load_checkpoint(self.last) if self.last.exists() else None
        step = self.checkpoint["num_timesteps"] if self.checkpoint else -1
        self.metrics = MetricsFile(directory / "metrics.csv", step)
        self._purge_step = step + 1
        self.started = time.perf_counter()
        if not self.finished:
            self._note_start(step)

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.directory / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best evaluation."""
        return self.directory / "best.ckpt"

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return (self.directory / "done.json").exists()

    def _compare(self, config: dict[str, Any]) -> None:
        path = self.directory / "config.yaml"
        trained = self.last.exists() or self.finished
        if not (trained and path.exists()):  # a failed first command spoils nothing
            save_yaml(config, path)
            return
        saved = read_yaml(path)
        for key in sorted(config.keys() | saved.keys()):
            if key not in ("device", "run") and saved.get(key) != config.get(key):
                raise ConfigError(
                    f"run={self.directory}: holds a run with {key}={saved.get(key)!r}, expected "
                    f"{config.get(key)!r}; give another run= or delete the directory"
                )

    def _note_start(self, step: int) -> None:
        """Command, versions and step of every start, in starts.jsonl."""
        versions = {"python": platform.python_version()}
        for name in ("infomax-rl", "torch", "mujoco", "gymnasium", "numpy"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        script = Path(sys.argv[0]).name
        start = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": max(step, 0),
            "command": shlex.join(["python", script, *sys.argv[1:]]),
            "versions": versions,
        }
        try:
            with (self.directory / "starts.jsonl").open("a") as file:
                file.write(json.dumps(start) + "\n")
        except OSError as error:
            raise ConfigError(f"run={self.directory}: {error.strerror}") from None

    def log(self, metrics: Mapping[str, float]) -> None:
        """Write one row to metrics.csv and TensorBoard."""
        if not self.leads:
            return
        self.metrics.write(metrics)
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(self.directory / "tb", purge_step=self._purge_step)
        for name, value in metrics.items():
            if name != "timesteps":
                self._tensorboard.add_scalar(name, value, int(metrics["timesteps"]))

    def save(self, tree: Mapping[str, Any], best: bool = False) -> None:
        """Write the newest (or best) checkpoint."""
        if self.leads:
            save_checkpoint(self.best if best else self.last, tree)

    def crash(self, error: str, timesteps: int) -> str:
        """Keep what repeats a NaN or infinity; returns what to say of it.

        `crash.json` says what happened, and `crash.ckpt` is the last checkpoint before, which
        decides all that followed: see `replay`. There is none if it happened before the first one.
        Another process of `torchrun` leaves `crash-<rank>.json` only: its environments and memory
        are in no checkpoint.
        """
        record = json.dumps({"error": error, "timesteps": timesteps}, indent=2) + "\n"
        if not self.leads:
            what = self.directory / f"crash-{parallel.rank()}.json"
            try:
                what.write_text(record)
            except OSError as reason:
                return f"{what} could not be written: {reason.strerror}"
            return f"{what} keeps this; `replay` repeats what the first process met, too"
        what, start = self.directory / "crash.json", self.directory / "crash.ckpt"
        try:
            start.unlink(missing_ok=True)
            if self.last.exists():
                os.link(self.last, start)  # whose content stays when the next one takes its place
            what.write_text(record)
        except OSError as reason:
            return f"{what} could not be written: {reason.strerror}"
        return f"`python train.py replay run={self.directory}` repeats it"

    def agree_to_stop(self) -> None:
        """A signal that one process of `torchrun` got stops all of them after the same update."""
        number = parallel.highest(self.stop or 0)
        self.stop = signal.Signals(number) if number else None

    def finish(self, results: Mapping[str, Any]) -> None:
        """Mark the run as finished; its results go to done.json."""
        temporary = self.directory / "done.json.tmp"
        temporary.write_text(json.dumps(results, indent=2) + "\n")
        os.replace(temporary, self.directory / "done.json")

    def __enter__(self) -> Run:
        self._previous = {number: signal.signal(number, self._on_signal) for number in EXIT_CODES}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._lock is not None:
            self._lock.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = signal.Signals(number)


def _locked(file: IO[str]) -> bool:
    """Take a lock, within a second: who only looks at a run, as a sweep does, shares it briefly."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def replay(agent: Agent, directory: Path) -> tuple[str, str | None]:
    """Repeat the updates before a crash, writing nothing: what was said then, and what is said now.

    A checkpoint decides all that follows, so on the CPU the error comes again as long as the fault
    is in the code, the settings or the environment, and None says that it is gone. On a GPU,
    rounding may differ. Of several processes of `torchrun` only the first one's is repeated.

    Args:
        agent: a new one with the run's configuration.
        directory: of the run.

    Raises:
        ConfigError: it holds no crash.
        CheckpointError: crash.ckpt is damaged or of another agent.
    """
    start = directory / "crash.ckpt"
    try:
        crash = json.loads((directory / "crash.json").read_text())
        error, timesteps = str(crash["error"]), int(crash["timesteps"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"run={directory}: expected a readable crash.json") from None
    if start.exists():
        agent.restore(load_checkpoint(start), start)
    try:
        agent.learn(timesteps + 1)
    except NonFiniteError as again:
        return error, str(again)
    return error, None

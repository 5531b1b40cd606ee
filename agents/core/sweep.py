"""Many runs: a list of commands whose directories say what is done and what is left.

A sweep keeps no state of its own. Each of its runs is what `train.py` does with the same overrides,
in the same directory, which alone decides whether the run is finished, goes on or starts, and whose
lock keeps two processes from doing it twice. So a sweep can be stopped and issued again at any time
and from several machines that share the directory.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import importlib.util
import io
import itertools
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from agents.core.config import ConfigError
from envs.base import processors

LIMIT = 100_000
"""Runs of one sweep."""
RETRIES = 10
"""How often Ray begins a run again whose worker was lost."""
_ELSEWHERE = "another process is using this directory"
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "INFOMAX_PROCESSORS": "1"}
_STOPPED = (75, 130)


@dataclass(frozen=True)
class Task:
    """One run of a sweep."""

    name: str
    """Of the agent or baseline."""
    overrides: tuple[str, ...]
    directory: Path
    total: int
    """Environment steps at its end."""

    @property
    def arguments(self) -> list[str]:
        """What `train.py` is called with; the directory is absolute, for other machines."""
        return [self.name, *self.overrides, f"run={self.directory.resolve()}"]

    @property
    def label(self) -> str:
        """What tables call it."""
        return " ".join([self.name, *self.overrides])

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.directory / "train.log"

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return (self.directory / "done.json").exists()

    def status(self) -> str:
        """`finished`, `running`, `interrupted` or `new`."""
        if self.finished:
            return "finished"
        with contextlib.suppress(FileNotFoundError), (self.directory / ".lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return "running"
        return "interrupted" if (self.directory / "last.ckpt").exists() else "new"

    def progress(self) -> dict[str, float]:
        """The newest row of metrics.csv, {} before the first; reads only the file's ends."""
        try:
            with (self.directory / "metrics.csv").open("rb") as file:
                header = file.readline().decode()
                end = file.seek(0, os.SEEK_END)
                file.seek(max(len(header), end - 65536))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return {}
        names = next(csv.reader(io.StringIO(header)), [])
        values = next(csv.reader(lines[-1:]), [])
        if len(values) != len(names):  # about to be written
            return {}
        with contextlib.suppress(ValueError):
            return {n: float(v) for n, v in zip(names, values, strict=True) if v}
        return {}

    def last_words(self) -> str:
        """The last line of the log."""
        try:
            lines = self.log.read_text(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of what overrides list: `seed=0..4` and `lr=1e-4,3e-4`.

    `a..b` are the integers from a to b; commas inside brackets or quotes do not separate.

    Raises:
        ConfigError: no `key=value`, an empty item, a falling range, or too many runs.
    """
    choices = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"malformed override {text!r}, expected key=value")
        choices.append([f"{key}={item}" for item in listed(value, key)])
    if math.prod(map(len, choices)) > LIMIT:
        raise ConfigError(f"sweep: {math.prod(map(len, choices)):,} runs, expected at most {LIMIT}")
    return [list(combination) for combination in itertools.product(*choices)]


def listed(text: str, key: str) -> list[str]:
    """The items that `text` lists; see `expand`."""
    items, depth, quote, start = [], 0, "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            items.append(text[start:i])
            start = i + 1
    items.append(text[start:])
    values: list[str] = []
    for item in items:
        if not item and len(items) > 1:
            raise ConfigError(f"{key}={text}: an item is empty, expected values between commas")
        bounds = re.fullmatch(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})", item)
        if bounds is None:
            values.append(item)
            continue
        first, last = map(int, bounds.groups())
        if not 0 <= last - first < LIMIT:
            raise ConfigError(f"{key}={item}: expected a rising range of at most {LIMIT:,}")
        values += map(str, range(first, last + 1))
    return values


# ---- where runs are carried out

Outcomes = Iterator[tuple[Task | None, int]]
"""A run that ended with its exit code, or (None, 0) while they run."""
Stop = Callable[[], int | None]
"""The signal that asked to stop, None as long as there was none."""


def run_local(tasks: Sequence[Task], train: Path, jobs: int, stop: Stop) -> Outcomes:
    """Each run in a process of its own with one thread, `jobs` at a time.

    Args:
        tasks: the runs.
        train: the script.
        jobs: processes at a time.
        stop: the signal to pass on, None to go on; nothing starts after one.
    """
    waiting, processes = list(tasks), {}
    passed = None
    while processes or (waiting and stop() is None):
        while waiting and len(processes) < jobs and stop() is None:
            task = waiting.pop(0)
            if (status := task.status()) in ("finished", "running"):  # by somebody else meanwhile
                yield task, 0 if status == "finished" else 75
                continue
            task.directory.mkdir(parents=True, exist_ok=True)
            with task.log.open("a") as log:
                print(
                    "$", shlex.join(["python", train.name, *task.arguments]), file=log, flush=True
                )
                processes[task] = subprocess.Popen(
                    [sys.executable, str(train), *task.arguments],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **_ENVIRONMENT},
                )
        if (number := stop()) is not None and passed != number:
            passed = number
            for process in processes.values():
                process.send_signal(number)
        for task, process in list(processes.items()):
            if (code := process.poll()) is not None:
                del processes[task]
                yield task, code
        time.sleep(0.05)
        yield None, 0


def run_on_ray(tasks: Sequence[Task], train: Path, gpus: float, stop: Stop) -> Outcomes:
    """Each run as a task of a Ray cluster, begun again where its worker is lost.

    The cluster is the one `ray start` or RAY_ADDRESS names, otherwise this machine. Its machines
    share the directory of the runs and that of the script.

    Args:
        tasks: the runs.
        train: the script.
        gpus: share of a GPU that each run takes.
        stop: see `run_local`.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--on ray: needs Ray: pip install 'infomax-rl[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to anybody
    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    paths = [str(train.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    # max_calls: a fresh process for each run, as anywhere else.
    remote = ray.remote(
        num_cpus=1, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=True,
        max_calls=1, runtime_env={"env_vars": variables},
    )(run_here)  # fmt: skip
    pending: dict[Any, Task] = {remote.remote(task, str(train)): task for task in tasks}
    cancelled = False
    while pending:
        if stop() is not None and not cancelled:
            cancelled = True
            for reference in pending:
                ray.cancel(reference)  # an interrupt where it runs, which saves
        done, _ = ray.wait(list(pending), timeout=0.2)
        for reference in done:
            task = pending.pop(reference)
            try:
                yield task, ray.get(reference)
            except (ray.exceptions.RayError, InterruptedError) as error:
                if not cancelled:
                    with task.log.open("a") as log:
                        print(f"error: {' '.join(str(error).split())[-300:]}", file=log)
                yield task, 130 if cancelled else 75
        yield None, 0


def run_here(task: Task, train: str) -> int:
    """Exit code of one run in this process, on whatever machine.

    Raises:
        InterruptedError: the run was stopped by a signal of the machine and is to be gone on with,
            here or elsewhere.
    """
    spec = importlib.util.spec_from_file_location("train", train)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    task.directory.mkdir(parents=True, exist_ok=True)
    with (
        task.log.open("a", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        print("$", shlex.join(["python", Path(train).name, *task.arguments]))
        try:
            code = script.main(task.arguments)
        except Exception:
            traceback.print_exc()
            code = 1
    if code == 75 or (code == 2 and _ELSEWHERE in task.last_words()):
        raise InterruptedError(f"{task.directory}: stopped, to be gone on with")
    return code


def slurm_script(tasks: Sequence[Task], train: Path, jobs: int | None, gpus: float) -> str:
    """A job array, one element per run; before its time is up a job saves and queues itself again.

    A run's output goes to its own log, as with the other ways, and what Slurm and the script say
    to `slurm-<job>_<element>.out` beside the runs.

    Args:
        tasks: the runs.
        train: the script.
        jobs: elements at a time, None for any number.
        gpus: GPUs of each element.

    Raises:
        ConfigError: sbatch cannot name a file in the directory of the runs.
    """
    at_once = f"%{jobs}" if jobs else ""
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=infomax-rl",
        f"#SBATCH --array=0-{len(tasks) - 1}{at_once}",
        "#SBATCH --cpus-per-task=1",
        *([f"#SBATCH --gpus-per-task={math.ceil(gpus)}", "#SBATCH --ntasks=1"] if gpus else []),
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={_output(_common(tasks))}",
        "",
        *(f"export {name}={value}" for name, value in _ENVIRONMENT.items()),
        'case "$SLURM_ARRAY_TASK_ID" in',
        *(
            f"{i}) log={shlex.quote(str(t.log.resolve()))}; set -- {shlex.join(t.arguments)} ;;"
            for i, t in enumerate(tasks)
        ),
        '*) echo "SLURM_ARRAY_TASK_ID=$SLURM_ARRAY_TASK_ID: no such run" >&2; exit 2 ;;',
        "esac",
        'mkdir -p "${log%/*}"',
        f'echo "$ python {train.name} $*" >>"$log"',
        f'{shlex.join([sys.executable, str(train)])} "$@" >>"$log" 2>&1 &',
        "pid=$!",
        # 300 s before the end (USR1) or on preemption (TERM): save.
        "trap 'kill -USR1 $pid' USR1 TERM",
        "while :; do",
        '    wait "$pid"; code=$?',
        # Above 128 it is this script's signal that ended the wait, unless the run is gone.
        '    { [ "$code" -gt 128 ] && kill -0 "$pid" 2>/dev/null; } || break',
        "done",
        'if [ "$code" -eq 75 ]; then',
        '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def write_slurm_script(tasks: Sequence[Task], train: Path, jobs: int | None, gpus: float) -> Path:
    """Write the job array beside the runs; returns the file, whose name depends on its content."""
    text = slurm_script(tasks, train, jobs, gpus)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = _common(tasks) / f"sweep-{digest}.sbatch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _output(directory: Path) -> str:
    """Slurm's own log in a directory, as sbatch reads it: in quotes, where % begins a pattern."""
    if {"\\", "\n"} & set(str(directory)):  # a backslash turns patterns off
        raise ConfigError(f"--on slurm: {str(directory)!r}: expected no backslash or line break")
    escaped = str(directory).replace("%", "%%").replace('"', '\\"')
    return f'"{escaped}/slurm-%A_%a.out"'


def _common(tasks: Sequence[Task]) -> Path:
    """The directory that holds all runs."""
    return Path(os.path.commonpath([task.directory.resolve().parent for task in tasks]))


# ---- the table


class Screen:
    """Lines that stay, and below them a table that is drawn again and again on a terminal."""

    def __init__(self) -> None:
        self._drawn, self._terminal, self._last = 0, sys.stdout.isatty(), 0.0

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._erase()
        print(text, flush=True)

    def draw(self, rows: Callable[[], list[str]], interval: float = 1.0) -> None:
        """Show the table as it is now, at most once per interval [s]; nothing off a terminal."""
        if not self._terminal or time.monotonic() - self._last < interval:
            return
        self._last = time.monotonic()
        self._erase()
        width, height = os.get_terminal_size()
        lines = [row[: width - 1] for row in rows()][: height - 1]
        print(*lines, sep="\n", flush=True)
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0


def carry_out(tasks: Sequence[Task], train: Path, options: Mapping[str, str | None]) -> int:
    """What `train.py sweep` does with its runs; returns an exit code.

    Args:
        tasks: the runs.
        train: the script.
        options: `on`, `jobs`, `gpus` and `dry-run` as they were given.

    Raises:
        ConfigError: an option's value, or Ray is not there.
    """
    on, jobs, gpus = options["on"], options["jobs"], options["gpus"]
    if on not in ("local", "ray", "slurm"):
        raise ConfigError(f"--on {on}: expected local, ray or slurm")
    if jobs is not None and (not jobs.isdigit() or not int(jobs)):
        raise ConfigError(f"--jobs {jobs}: expected a positive integer")
    if on == "ray" and jobs is not None:
        raise ConfigError("--jobs: Ray runs as many as its processors allow; leave it out")
    if on == "local" and gpus is not None:
        raise ConfigError("--gpus: only with --on ray or slurm; here device= chooses one")
    if gpus is not None and not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,4})?", gpus):
        raise ConfigError(f"--gpus {gpus}: expected a number such as 1 or 0.25")
    share = float(gpus or 0)
    left = [task for task in tasks if not task.finished]
    if options["dry-run"]:
        for task in tasks:
            steps = int(task.progress().get("timesteps", 0))
            print(f"{task.status():12} {steps:>12,} of {task.total:,} steps  {task.label}")
        print(f"{len(tasks)} runs, {len(tasks) - len(left)} finished")
        return 0
    if on == "slurm" and left:
        path = write_slurm_script(left, train, int(jobs) if jobs else None, share)
        print(f"{len(left)} of {len(tasks)} runs are left; submit them with\n\n    sbatch {path}\n")
        return 0
    if on == "ray" and left:
        return watch(tasks, lambda stop: run_on_ray(left, train, share, stop))
    at_once = int(jobs) if jobs else processors()
    return watch(tasks, lambda stop: run_local(left, train, at_once, stop))


def watch(tasks: Sequence[Task], run: Callable[[Stop], Outcomes]) -> int:
    """Carry out what is left of a sweep and show its progress; returns an exit code.

    0: every run is finished; 2: some failed; 75: some were interrupted or run elsewhere, issue the
    sweep again; 130: stopped by Ctrl-C.
    """
    stopped: list[signal.Signals] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopped.append(signal.Signals(number))

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    screen, started = Screen(), time.time()
    ended = {task: "finished" for task in tasks if task.finished}
    screen.line(f"{len(tasks)} runs, {len(ended)} finished already")
    try:
        for task, code in run(lambda: stopped[-1] if stopped else None):
            if task is not None and not (stopped and task.status() == "new"):
                ended[task] = _outcome(task, code)
                steps = int(task.progress().get("timesteps", 0))
                screen.line(f"{ended[task]:12} {steps:>12,} steps  {task.label}")
                if ended[task] == "failed":
                    screen.line(f"             {task.last_words() or f'exit code {code}'}")
            screen.draw(lambda: _table(tasks, ended, started))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    counts = {
        s: list(ended.values()).count(s) for s in ("finished", "failed", "interrupted", "running")
    }
    counts["not started"] = len(tasks) - len(ended)
    screen.line(f"{len(tasks)} runs: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n))
    if counts["failed"]:
        return 2
    if counts["finished"] == len(tasks):
        return 0
    screen.line("the same command goes on from here")
    return 130 if stopped and stopped[-1] == signal.SIGINT else 75


def _outcome(task: Task, code: int) -> str:
    """What became of a run whose process ended; a signal's victim goes on from its checkpoint."""
    if task.finished:
        return "finished"
    if code == 2 and _ELSEWHERE in task.last_words():
        return "running"
    if code == 75 and task.status() == "running":
        return "running"
    return "interrupted" if code in _STOPPED or code < 0 else "failed"


def _table(tasks: Sequence[Task], ended: dict[Task, str], started: float) -> list[str]:
    """One row for each run that runs now, and a last one for all."""
    rows = []
    for task in tasks:
        if task in ended or not task.log.exists() or task.log.stat().st_mtime < started:
            continue
        row = task.progress()
        share = min(1.0, row.get("timesteps", 0) / task.total)
        bar = "█" * round(20 * share)
        value = f"return {row['return']:.3g}" if "return" in row else ""
        speed = f"{row.get('time/steps_per_second', 0):,.0f} steps/s"
        rows.append(f"{share:4.0%} {bar:·<20} {speed:>16}  {value:14}  {task.label}")
    minutes = (time.time() - started) / 60
    waiting = len(tasks) - len(ended) - len(rows)
    counts = f"{len(ended)}/{len(tasks)} ended, {len(rows)} running, {waiting} waiting"
    return [*rows, f"{counts}, {minutes:.1f} min"]

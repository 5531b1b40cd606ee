"""Copies in worker processes: the same numbers, and every kind of failure with its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from counter import Counter

from envs.adapt import from_gymnasium
from envs.base import SimulationError
from envs.foreign import GymnasiumBatch, _workers_that_pay
from envs.workers import Rows, WorkerPool

ROOT = Path(__file__).resolve().parents[2]


def pool(env: GymnasiumBatch) -> WorkerPool:
    assert isinstance(env._rows, WorkerPool)
    return env._rows


def processes(env: GymnasiumBatch) -> list[int]:
    return [process.pid for process in pool(env)._processes]


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process ends in time, or is a zombie that waits for its parent."""
    end = time.monotonic() + within
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.01)


@pytest.mark.parametrize("mode", ["same-step", "next-step", "disabled"])
def test_workers_and_this_process_give_the_same_numbers(mode: str) -> None:
    def make(workers: int) -> GymnasiumBatch:
        env = from_gymnasium(Counter, 5, seed=3, workers=workers)
        env.autoreset = mode
        return env

    here, there = make(0), make(2)
    assert isinstance(here._rows, Rows)
    assert pool(there)._chunks == [range(3), range(3, 5)]
    first, second = here.reset(), there.reset(options={})
    for step in range(14):
        assert torch.equal(first[0], second[0])
        assert first[-1].keys() == second[-1].keys()
        for name, value in first[-1].items():
            assert torch.equal(value, second[-1][name]), name
            assert value.dtype == second[-1][name].dtype
        if mode == "disabled" and step and bool(first[-1]["_final_obs"].any()):
            mask = first[-1]["_final_obs"]
            for env in (here, there):
                env.reset(options={"reset_mask": mask})
        if step == 6:
            mask = torch.tensor([False, True, False, False, True])
            options = {"reset_mask": mask, "level": 2}
            assert torch.equal(here.reset(options=options)[0], there.reset(options=options)[0])
        action = torch.arange(5) + step % 5
        first, second = here.step(action), there.step(action)
        for a, b in zip(first[:4], second[:4], strict=True):
            assert torch.equal(a, b)
    assert {"noise", "pair"} <= first[-1].keys() or mode == "next-step"
    assert torch.equal(here.elapsed, there.elapsed)
    state = here.state_dict()
    assert state == there.state_dict()
    assert torch.equal(here.last_obs, there.last_obs)
    there.close()


def test_infos_of_all_kinds_come_from_workers() -> None:
    env = from_gymnasium(Counter, 4, workers=2)
    _, info = env.reset(options={"level": 2})
    assert info["options"].tolist() == [1] * 4
    *_, info = env.step(torch.zeros(4, dtype=torch.int64))
    assert info.keys() == {"count", "noise", "pair", "odd", "final_obs", "_final_obs"}
    assert (info["count"].dtype, info["odd"].dtype) == (torch.int64, torch.bool)
    assert (info["pair"].shape, info["pair"].dtype) == ((4, 2), torch.float32)
    *_, info = env.step(torch.zeros(4, dtype=torch.int64))
    assert "odd" not in info
    env.close()


FAILURES = {
    "raise": r"worker 1 \(environments 2\.\.3\) could not step; it was at environment 3, "
    r"whose action was 9: ValueError: the arm is stuck\n[^$]*Traceback",
    "exit": r"worker 1 .* could not step; it was at environment 3.*: SystemExit: 3",
    "kill": r"worker 1 .* died of SIGKILL when it had to step; .* environment 3, whose action",
    "leave": r"worker 1 .* left with code 4 when it had to step; it was at environment 3",
    "hang": r"worker 1 .* did not step within 1 s, was killed; it was at environment 3, whose",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_worker_is_named_and_none_is_left(failure: str) -> None:
    env = from_gymnasium(lambda: Counter(failure), 4, workers=2, timeout=20)
    pids = processes(env)
    env.reset()
    env.step(torch.tensor([1, 2, 3, 4]))
    pool(env).timeout = 1.0
    start = time.monotonic()
    with pytest.raises(SimulationError, match=FAILURES[failure]):
        env.step(torch.tensor([1, 2, 3, 9]))
    assert time.monotonic() - start < 4
    assert all(gone(pid, 0) for pid in pids)
    with pytest.raises(SimulationError, match=r"step: the workers are gone .*environment 3"):
        env.step(torch.tensor([1, 2, 3, 4]))
    env.close()


def test_a_worker_killed_from_outside_is_named() -> None:
    env = from_gymnasium(Counter, 4, workers=2)
    env.reset()
    first, second = processes(env)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(SimulationError, match=r"worker 0 \(environments 0\.\.1\) died of SIGKILL"):
        env.reset()
    assert gone(second, 0)


def test_a_worker_that_cannot_make_its_copies_is_named() -> None:
    made = []

    def make() -> Counter:  # the first copy, in this process, shows the spaces
        made.append(1)
        return Counter("make" if len(made) > 1 or "pytest" not in sys.modules else "")

    with pytest.raises(SimulationError, match=r"could not make .*environment 0: .*no licence"):
        from_gymnasium(make, 2, workers=2)


def test_workers_check_the_spaces_of_their_copies() -> None:
    class Odd(Counter):
        def __init__(self) -> None:
            if "pytest" not in sys.modules:  # in a worker
                self.action_space = gym.spaces.Discrete(3)

    with pytest.raises(SimulationError, match=r"environment 0: expected action_space Discrete.10"):
        from_gymnasium(Odd, 2, workers=1)


def test_no_worker_outlives_its_parent() -> None:
    """Not even one that hangs when the parent is killed outright."""
    script = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from counter import Counter
from test_workers import from_gymnasium, processes
env = from_gymnasium(lambda: Counter("hang"), 4, workers=2, timeout=60)
env.reset()
print(*processes(env), flush=True)
env.step(torch.tensor([1, 9, 1, 1]))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.3)  # into the step that hangs
    assert not any(gone(pid, 0) for pid in pids)
    parent.kill()
    parent.wait()
    assert all(gone(pid) for pid in pids)


def test_signals_to_all_processes_end_only_the_parent() -> None:
    env = from_gymnasium(Counter, 2, workers=1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(processes(env)[0], number)
    env.reset()
    env.close()


def test_close_ends_the_workers_and_deleting_does_too() -> None:
    env = from_gymnasium(Counter, 4, workers=2)
    pids = processes(env)
    env.close()
    assert all(gone(pid, 0) for pid in pids)
    env.close()
    env = from_gymnasium(Counter, 4, workers=2)
    pids = processes(env)
    del env
    assert all(gone(pid) for pid in pids)


def test_functions_of_a_script_without_a_main_guard_reach_the_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium as gym\n"
        "from envs.adapt import from_gymnasium\n"
        "class Mine(gym.Env):\n"
        "    observation_space = action_space = gym.spaces.Box(-1, 1, (1,))\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return self.observation_space.sample() * 0, {}\n"
        "    def step(self, action):\n"
        "        return action, 1.0, False, False, {}\n"
        "env = from_gymnasium(lambda: Mine(), 3, workers=2)\n"
        "env.reset()\n"
        "print(env.step([[0.5]] * 3)[0].sum().item())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "1.5\n", done.stderr


def test_auto_takes_workers_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    assert _workers_that_pay(Counter(), 4) == 0
    assert _workers_that_pay(Counter(pause=1e-3), 64) == 4
    assert _workers_that_pay(Counter(pause=1e-3), 2) == 2
    assert _workers_that_pay(Counter(pause=1e-3), 1) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1))
    assert _workers_that_pay(Counter(pause=1e-3), 64) == 0


@pytest.mark.parametrize("workers", [-1, 1.5, "two"])
def test_impossible_numbers_of_workers_are_refused(workers: Any) -> None:
    with pytest.raises(ValueError, match=f"workers={workers!r}: expected 'auto' or an integer"):
        from_gymnasium(Counter, 2, workers=workers)


def test_workers_load_neither_torch_nor_this_package() -> None:
    """Either import would cost every worker seconds and hundreds of megabytes."""

    class Loaded(Counter):
        def step(self, action: Any) -> Any:
            obs, *rest, _ = super().step(action)
            return obs, *rest, {"heavy": sum(name in sys.modules for name in ("torch", "envs"))}

    make: Callable[[], gym.Env] = Loaded
    env = from_gymnasium(make, 2, workers=2)
    env.reset()
    assert env.step(torch.zeros(2, dtype=torch.int64))[-1]["heavy"].tolist() == [0, 0]
    env.close()

"""Campaigns of `trust.py` inside one process: numbers that are not finite, foreign environments."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from trust_runs import Problems, finite, late, make

from agents import NonFiniteError
from agents.core.checkpoint import load_checkpoint
from agents.core.run import Run, replay
from envs.adapt import from_gymnasium
from envs.base import SimulationError

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
                if not finite(tree):
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
        if self.place in ("observation", "reward", "action") and (
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

"""ACORM and its baselines, measured: speed of learning steps, win rates in `combat`, pictures.

    python benchmarks/acorm.py all [jobs=1] [scale=cpu] [seeds=3] [maps=2s3z,3s5z]
                                   [methods=acorm,qmix]
    python benchmarks/acorm.py speed                     CPU-seconds of learning steps
    python benchmarks/acorm.py learning [...]            win-rate curves of all methods
    python benchmarks/acorm.py pictures run=<directory>  roles, attention, a battle that was won
    python benchmarks/acorm.py collect [...] | report    CSV of the runs done so far; plots

`scale=paper` is the paper's number of environment steps, and else the methods' own settings;
`scale=cpu`, the default, is what busy cores can do: 1 gradient step per 160 environment steps, of 8
episodes, and targets that look further ahead (TD(λ)); `cpu-long` takes twice as many steps,
`cpu-smax` eight times as many. `jaxmarl` leaves all to `qmix-jaxmarl` but the number of steps, over
a tenth of which ε falls; `jaxmarl-half` takes half as many. `mappo`, for `acorm-mappo` and
`recurrent-mappo`, leaves all to them but the number of steps and of updates before roles are used.
A map `smax:2s3z` has the rules of SMAX. In the scales `cpu` all methods have the same settings,
environment steps and gradient steps; those that train ACORM's embedding and roles first are among
them. Every run is a directory under runs/benchmark/acorm and is skipped when it is done, so the
command can be interrupted and issued again. Results on `combat` are not SMAC results.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from common import in_parallel, note, write_csv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "acorm"
RUNS = ROOT / "runs" / "benchmark" / "acorm"

METHODS = ("acorm", "qmix", "qmix-matched", "acorm-no-contrastive", "acorm-no-attention")
"""Names of `train.py`."""
CPU: dict[str, Any] = {
    "total_timesteps": 80_000, "num_envs": 64, "horizon": 25, "updates": 10, "batch_size": 8,
    "lr": 1e-3, "td_lambda": 0.8, "target_rate": 0.02, "epsilon": [1.0, 0.05],
    "epsilon_steps": 40_000, "eval_episodes": 64, "points": 10,
    "pretrain_embedding": 40, "pretrain_roles": 40, "contrastive_interval": 10,
}  # fmt: skip
SCALES: dict[str, dict[str, Any]] = {
    "cpu": CPU,
    "cpu-long": CPU | {"total_timesteps": 160_000},
    "cpu-smax": CPU | {"total_timesteps": 640_000, "points": 16},
    "jaxmarl": {
        "total_timesteps": 256_000, "epsilon_steps": 25_600, "eval_episodes": 64, "points": 10,
    },
    "jaxmarl-half": {
        "total_timesteps": 128_000, "epsilon_steps": 12_800, "eval_episodes": 64, "points": 5,
    },
    "mappo": {"total_timesteps": 320_000, "eval_episodes": 64, "points": 8, "pretrain": 20},
    "paper": {"total_timesteps": 2_000_000, "eval_episodes": 64, "points": 40},
}  # fmt: skip
"""What differs from the defaults; `points` evaluations along a curve."""
PUBLISHED = {"td": 1.20, "pretraining": 0.34, "contrastive": 6.85, "acting": 0.56e-3}
"""CPU-seconds of the published code at the same sizes, measured once on 2 busy cores (torch 2.13,
scikit-learn 1.9 with one start per K-means; with ten, the default it was made with, 17.8)."""
BARS = {"td": 1.4, "contrastive": 25.0}


# ---- speed


def speed(rounds: int = 5) -> None:
    """speed.csv: ours, the published structure in the same run, and the published code's times.

    2s3z (5 agents, 80 observations, 120 states, 11 actions), 32 episodes of 120 steps.
    """
    import gymnasium as gym
    import numpy as np
    import torch
    from acorm_reference import Reference

    from agents import ACORM
    from envs.base import BatchedEnv

    torch.set_num_threads(1)

    class Sizes(BatchedEnv):
        max_episode_steps, num_agents = 120, 5

        def __init__(self, num_envs: int) -> None:
            box = gym.spaces.Box(-1, 1, (5, 80), np.float32)
            super().__init__(num_envs, box, gym.spaces.MultiDiscrete([11] * 5))

        def _begin(self, mask: Any) -> None:
            pass

        def _advance(self, action: Any) -> Any:
            return torch.rand(self.num_envs), torch.zeros(self.num_envs) > 0, {}

        def _observe(self) -> Any:
            return torch.rand(self.num_envs, 5, 80)

        def _state(self) -> dict[str, Any]:
            return {}

        def context(self) -> dict[str, Any]:
            every = torch.ones(self.num_envs, 5, 11, dtype=torch.bool)
            state = torch.rand(self.num_envs, 120)
            return {"state": state, "avail_actions": every, "alive": every[..., 0].clone()}

    agent = ACORM(Sizes(32), num_envs=32, horizon=120, device="cpu")
    agent._obs, agent._state = agent.env.reset(seed=0)[0], agent.initial_state(32)
    agent.collect()
    batch = agent._sample()
    one, alone = Sizes(1), agent.initial_state(1)
    context = one.context()
    first = torch.rand(1, 5, 80)

    def td() -> None:
        loss, _ = agent._td_loss(batch)
        agent._descend(loss, ("value", "roles"), 6e-4)
        agent._move_targets()

    def acting() -> None:
        with torch.no_grad():
            for _ in range(100):
                agent.act(first, agent.perceive(alone, context), True)

    reference = Reference(agent, batch)
    parts: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None, int]] = {
        "td": (td, reference.td, 1),
        "contrastive": (lambda: agent._contrast(batch), reference.contrast, 1),
        "pretraining": (lambda: agent._pretrain(batch), None, 1),
        "acting": (acting, None, 100),
    }
    rows = []
    for name, (ours, theirs, count) in parts.items():
        times: dict[str, list[float]] = {"ours": [], "loops": []}
        for turn in range(rounds + 1):  # in turns, so that a busy machine slows both; one to warm
            for who, function in (("ours", ours), ("loops", theirs)):
                if function is None or (who == "loops" and name == "contrastive" and turn > 2):
                    continue
                started = time.process_time()
                function()
                times[who].append((time.process_time() - started) / count)
        mine, loops = (median(v[1:]) if len(v) > 1 else None for v in times.values())
        assert mine is not None
        rows.append({
            "operation": name, "ours": mine, "loops": loops or "",
            "times_loops": loops / mine if loops else "", "published": PUBLISHED[name],
            "times_published": PUBLISHED[name] / mine, "bar": BARS.get(name, ""),
        })  # fmt: skip
        print(rows[-1])
    write_csv(RESULTS / "speed.csv", rows)


# ---- learning


def runs(scale: str, seeds: int, maps: list[str], methods: list[str]) -> list[dict[str, Any]]:
    return [
        {"map": name, "method": method, "seed": seed, "scale": scale}
        for seed in range(seeds)
        for name in maps
        for method in methods
    ]


def directory(run: dict[str, Any]) -> Path:
    name = run["map"].replace(":", "-")
    return RUNS / run["scale"] / f"{name}-{run['method']}-seed{run['seed']}"


def settings(run: dict[str, Any]) -> Any:
    """The configuration of a run; the size of `qmix-matched` is fitted to ACORM's on the map."""
    import train
    from agents import AGENTS
    from agents.core.config import build

    layers, agent = train._layers(run["method"])
    scale = {k: v for k, v in SCALES[run["scale"]].items() if k != "points"}
    if "no-contrastive" in run["method"]:
        scale = {
            k: v for k, v in scale.items() if k not in ("contrastive_interval", "pretrain_roles")
        }
    rules, _, name = run["map"].rpartition(":")
    scale |= {"env": f"combat/{name}", "seed": run["seed"], "device": "auto"}
    if rules:
        scale |= {"env_kwargs": {"rules": rules}}
    if rules == "smax" and agent == "acorm":  # a won battle is worth 2, with `sc2` it is 20
        scale["reward_scale"] = 10.0
    if run["method"] == "qmix-matched":
        scale |= matched(scale["env"], scale.get("env_kwargs", {}))
    return build(AGENTS[agent].Config, layers, scale)


def size(agent: Any) -> tuple[int, int]:
    """Trained parameters of what acts (with what shapes it), and of the mixer, or the critic."""
    if agent.name == "acorm-mappo":
        used = [agent.roles] if agent.config.roles else [agent.roles.body, agent.roles.output]
        acting, mixing = [agent.actor, *used], [agent.critic]
    else:
        acting = [agent.networks["utility"]]
        acting += [agent.roles] if agent.config.roles else []
        mixing = [m for name, m in agent.networks.items() if name != "utility"]
    return tuple(
        sum(p.numel() for m in group for p in m.parameters() if p.requires_grad)
        for group in (acting, mixing)
    )  # type: ignore[return-value]


def matched(env: str, env_kwargs: dict[str, Any]) -> dict[str, int]:
    """Widths of QMIX with at least as many parameters as ACORM, in the utility and in the mixer."""
    from agents import ACORM

    def qmix(**widths: int) -> tuple[int, int]:
        plain: dict[str, Any] = {"roles": False, "attention": "none", "agent_id": True}
        return size(ACORM(env, num_envs=1, env_kwargs=env_kwargs, **plain, **widths))

    want, found = size(ACORM(env, num_envs=1, env_kwargs=env_kwargs)), {}
    for i, name in enumerate(("hidden", "hyper_hidden")):
        low, high = 1, 8192
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if qmix(**{name: middle})[i] < want[i] else (low, middle)
        found[name] = low
    return found


def gradient_steps(agent: Any) -> int:
    """Taken so far; those of MAPPO's policy, without the first ones of embedding and roles."""
    if agent.name != "acorm-mappo":
        return agent.progress.steps
    config = agent.config
    updates = agent.num_updates - config.pretrain * config.roles
    return updates * config.epochs * config.minibatches


def learn(run: dict[str, Any]) -> None:
    """Train one run in this process; its curve goes to done.json."""
    import torch

    import train
    from agents import AGENTS
    from agents.core.config import to_dict
    from agents.core.run import Run

    torch.set_num_threads(1)
    config, points = settings(run), SCALES[run["scale"]]["points"]
    rounds = -(-config.total_timesteps // (config.num_envs * config.horizon))
    config.eval_interval = config.log_interval = config.checkpoint_interval = rounds // points
    with Run(directory(run), run["method"], to_dict(config)) as files:
        if files.finished:
            return
        agent = AGENTS[train._layers(run["method"])[1]](config=config)
        agent.run = files
        if files.checkpoint is not None:
            agent.restore(files.checkpoint, files.last)
        started, first = time.process_time(), agent.num_timesteps
        agent.learn()
        if files.stop is None:
            # An interrupted run knows the time of its last stretch only.
            share = config.total_timesteps / max(config.total_timesteps - first, 1)
            files.finish({
                "cpu_seconds": (time.process_time() - started) * share,
                "parameters": sum(size(agent)), "gradient_steps": gradient_steps(agent),
                **agent.evaluate(),
            })  # fmt: skip


def learning(scale: str, seeds: int, maps: list[str], methods: list[str], jobs: int) -> None:
    in_parallel("run-learning", runs(scale, seeds, maps, methods), jobs)
    collect(scale, seeds, maps, methods)


def collect(scale: str, seeds: int, maps: list[str], methods: list[str]) -> None:
    """curves.csv as far as runs have come, final.csv of those that are done; other rows stay."""
    from agents.core.log import read_metrics

    curves, final = [], []
    for run in runs(scale, seeds, maps, methods):
        folder = directory(run)
        if not (folder / "metrics.csv").exists():
            continue
        columns = read_metrics(folder / "metrics.csv")
        names = ("timesteps", "eval/win_rate", "eval/return_mean", "eval/length_mean")
        for row in zip(*(columns[name] for name in names), strict=True):
            if math.isnan(row[1]):  # not an evaluation
                continue
            curves.append(run | dict(zip([n.split("/")[-1] for n in names], row, strict=True)))
        if not (folder / "done.json").exists():
            continue
        done = json.loads((folder / "done.json").read_text())
        final.append(run | {"env_steps": int(columns["timesteps"][-1])} | done)
    keys = ("map", "method", "seed", "scale")
    write_csv(RESULTS / f"curves-{scale}.csv", curves, keys)
    write_csv(RESULTS / f"final-{scale}.csv", final, keys)


# ---- pictures, report


def pictures(run: str) -> None:
    """roles.png, attention.png and battle.mp4 of a trained agent."""
    from acorm_report import draw

    draw(Path(run), RESULTS)
    note(RESULTS / "roles.png", "roles.png, attention.png, battle.mp4")


def report() -> None:
    """REPORT.md and learning.png from whatever CSVs are there."""
    from acorm_report import write_report

    write_report(RESULTS)


def main(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "all"
    if command == "run-learning":
        return learn(json.loads(arguments[1]))
    if command not in ("all", "speed", "learning", "collect", "pictures", "report"):
        sys.exit(f"unknown command {command!r}\n\n{__doc__}")
    options = {
        "jobs": "1", "scale": "cpu", "seeds": "3", "maps": "2s3z,3s5z",
        "methods": ",".join(METHODS), "run": "",
    }  # fmt: skip
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key not in options:
            sys.exit(f"unknown option {key!r}, expected one of {', '.join(options)}")
        options[key] = value
    chosen = (
        options["scale"], int(options["seeds"]), options["maps"].split(","),
        options["methods"].split(","),
    )  # fmt: skip
    if command in ("speed", "all"):
        speed()
    if command in ("learning", "all"):
        learning(*chosen, jobs=int(options["jobs"]))
    if command == "collect":
        collect(*chosen)
    if command in ("pictures", "all"):
        pictures(options["run"] or str(directory(runs(*chosen)[0])))
    if command in ("report", "all"):
        report()


if __name__ == "__main__":
    main(sys.argv[1:])

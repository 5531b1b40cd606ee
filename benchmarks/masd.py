"""MASD in particle worlds, measured: coordination skills, and their use downstream.

    python benchmarks/masd.py all [jobs=2] [steps=960000] [seeds=5]      everything below, in order
    python benchmarks/masd.py skills | downstream                        one part
    python benchmarks/masd.py collect                                    CSV of the runs done so far
    python benchmarks/masd.py report                                     tables and plots

Every run is a directory under runs/benchmark/masd and is skipped when it is done, so the command
can be interrupted and issued again. Information is measured on frozen policies by decoders that are
fitted afresh and judged on held-out episodes, with a nearest-neighbour estimate beside it (see
`agents/core/coordination.py`). Learning results are interquartile means with 95 % bootstrap
intervals over seeds (Agarwal et al. 2021).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from common import in_parallel, train_run, write_csv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "masd"
RUNS = ROOT / "runs" / "benchmark" / "masd"

METHODS: dict[str, dict[str, Any]] = {
    "masd": {},
    "masd-pairs": {},
    "masd-club": {"penalty": "club"},
    "joint-diayn": {},
    "independent-diayn": {},
    "dusdi": {},
    "maven": {},
}
"""Rows of the table of skills: a name of `train.py`, and what differs from it."""
NEAR = {"masd": {}, "joint-diayn": {}}
"""Methods that are also trained from near-fixed starts, all agents within 0.1 m of the origin."""
TASKS = ("spread", "tag", "formation")
PRETRAINED = ("masd", "joint-diayn", "independent-diayn")
POINTS = 10  # evaluations of a fine-tuning curve, besides the one at its start
EPISODES = 512  # of one of them


# ---- skills


def skill_runs(steps: int, seeds: int) -> list[dict[str, Any]]:
    parts = [(method, 1.0) for method in METHODS] + [(method, 0.1) for method in NEAR]
    return [
        {"method": method, "start": start, "seed": seed, "steps": steps}
        for seed in range(seeds)
        for method, start in parts
    ]


def directory(run: dict[str, Any]) -> Path:
    return RUNS / f"{run['method']}-start{run['start']:g}-{run['steps']}-seed{run['seed']}"


def train_skills(run: dict[str, Any]) -> None:
    """Train and measure one run in this process; results go to done.json."""
    method = run["method"]
    overrides = {
        "env": "particles/free", "env_kwargs": {"start": run["start"]}, "seed": run["seed"],
        "total_timesteps": run["steps"], "device": "cpu", "checkpoint_interval": 30,
        "eval_episodes": min(6144, max(64, run["steps"] // 100)), **METHODS[method],
    }  # fmt: skip
    name = "masd" if method == "masd-club" else method
    train_run(directory(run), method, name, overrides, measure_skills)


def measure_skills(agent: Any) -> dict[str, float]:
    """Information of the frozen policy, also with agents that do not take part."""
    from agents.core import coordination

    episodes, seed = agent.config.eval_episodes, agent.config.seed + 2
    return {**agent.evaluate(), **coordination.interventions(agent, episodes, seed)}


def skills(steps: int, seeds: int, jobs: int) -> None:
    in_parallel("run-skills", skill_runs(steps, seeds), jobs)
    collect_skills(steps, seeds)


def collect_skills(steps: int, seeds: int) -> None:
    """skills.csv from the runs that are done; a random policy's rows come with those of MASD."""
    rows = []
    for run in skill_runs(steps, seeds):
        path = directory(run) / "done.json"
        if not path.exists():
            continue
        done = json.loads(path.read_text())
        kept = {k: v for k, v in done.items() if not k.startswith("random/")}
        rows.append({**run, **kept})
        if run["method"] == "masd":
            random = {k.removeprefix("random/"): v for k, v in done.items() if k not in kept}
            rows.append({**run, "method": "random", "steps": 0, **random})
    write_csv(RESULTS / "skills.csv", rows)


# ---- downstream


def downstream_runs(steps: int, seeds: int, skill_steps: int) -> list[dict[str, Any]]:
    """Scratch MAPPO; fine-tuning from, and selecting among, the skills of three methods."""
    ways = [("scratch", "")]
    ways += [(way, method) for way in ("fine-tune", "selector") for method in PRETRAINED]
    return [
        {"task": task, "way": way, "method": method, "seed": seed, "steps": steps,
         "skill_steps": skill_steps}
        for seed in range(seeds)
        for task in TASKS
        for way, method in ways
    ]  # fmt: skip


def downstream_directory(run: dict[str, Any]) -> Path:
    way = "-".join(filter(None, (run["way"], run["method"])))
    budget = f"{run['steps']}-after-{run['skill_steps']}"
    return RUNS / f"downstream-{run['task']}-{way}-{budget}-seed{run['seed']}"


def pretrained(run: dict[str, Any]) -> Path:
    skill = {"method": run["method"], "start": 1.0, "steps": run["skill_steps"]}
    folder = directory({**skill, "seed": run["seed"]})
    if not (folder / "done.json").exists():
        raise RuntimeError(f"{folder}: not trained to its end, run the skills first")
    return folder / "last.ckpt"


def run_downstream(run: dict[str, Any]) -> None:
    """One learner on one task; [environment steps, return, success] rows go to done.json."""
    import torch

    torch.set_num_threads(1)
    folder = downstream_directory(run)
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    results = selector(run) if run["way"] == "selector" else fine_tune(run)
    results["cpu_seconds"] = time.process_time() - started
    temporary = folder / "done.json.tmp"
    temporary.write_text(json.dumps(results) + "\n")
    temporary.replace(folder / "done.json")


def fine_tune(run: dict[str, Any]) -> dict[str, Any]:
    """MAPPO on the task, from scratch or from the actor and the best skill of a pre-trained agent.

    Choosing the skill is charged: its episodes are steps of the curve.
    """
    import agents
    from agents import MASD

    settings: dict[str, Any] = {
        "env": f"particles/{run['task']}", "seed": run["seed"], "device": "cpu", "num_envs": 64,
        "skill_weight": 0.0, "task_weight": 1.0, "penalty_weight": 0.0, "fixed_skill": 0,
        "total_timesteps": run["steps"], "log_interval": 1,
    }  # fmt: skip
    results: dict[str, Any] = {}
    if run["way"] == "fine-tune":
        path = pretrained(run)
        source = agents.load(path, device="cpu")
        size = source.config.skill_size
        returns = [zero_shot(source, run, skill) for skill in range(size)]
        settings |= {"pretrained": str(path), "skill_size": size}
        settings["fixed_skill"] = max(range(size), key=returns.__getitem__)
        results["zero_shot"] = max(returns)
        results["skills"] = returns
    agent = MASD(**settings)
    if "pretrained" in settings:
        agent.start_from(settings["pretrained"])
    spent = len(results.get("skills", [])) * 64 * agent.env.max_episode_steps
    results["curve"] = [[spent, *measure(agent, run)]]

    def follow(agent: Any, row: dict[str, float]) -> None:
        if row["timesteps"] >= len(results["curve"]) * run["steps"] / POINTS:
            results["curve"].append([spent + row["timesteps"], *measure(agent, run)])

    agent.num_timesteps = 0
    agent.config.pretrained = None  # it has started from there
    agent.learn(callback=follow)
    return results


def zero_shot(source: Any, run: dict[str, Any], skill: int) -> float:
    """Mean return of one frozen skill in 64 episodes of the task."""
    import torch

    import envs
    from agents.core.evaluate import play

    env = envs.make(f"particles/{run['task']}", 64, "cpu")
    width = source.env.single_observation_space.shape[-1]

    class Frozen:
        def initial_state(self, num_envs: int) -> dict[str, Any]:
            return {"skill": torch.eye(source.config.skill_size)[[skill] * num_envs]}

        def act(self, obs: Any, state: Any, deterministic: bool) -> Any:
            return source.act(obs[..., :width], state, deterministic)

    return play(Frozen(), env, 900 + run["seed"], deterministic=True).returns.mean().item()


def measure(agent: Any, run: dict[str, Any]) -> tuple[float, float]:
    """Mean return and success rate of the deterministic policy."""
    import torch

    import envs
    from agents.core.evaluate import play

    env = envs.make(f"particles/{run['task']}", EPISODES, "cpu")
    with agent.using(torch.Generator().manual_seed(0)):
        played = play(agent, env, 1000 + run["seed"], deterministic=True)
    return played.returns.mean().item(), played.last["success"].mean().item()


def selector(run: dict[str, Any]) -> dict[str, Any]:
    """SB3's PPO chooses a skill for the team every 5 steps."""
    import torch
    from stable_baselines3 import PPO

    import agents
    import envs
    from agents import SkillEnv
    from envs.adapt import to_sb3

    source = agents.load(pretrained(run), device="cpu")
    hold = 5

    def environment(n: int, seed: int) -> Any:
        return SkillEnv(envs.make(f"particles/{run['task']}", n, "cpu", seed), source, hold)

    def judge(model: Any) -> tuple[float, float]:
        test = environment(EPISODES, 0)
        obs, _ = test.reset(seed=1000 + run["seed"])
        total, info = torch.zeros(EPISODES), {}
        for _ in range(test.max_episode_steps):
            action, _ = model.predict(obs.numpy(), deterministic=True)
            obs, reward, _, _, info = test.step(torch.from_numpy(action))
            total += reward
        return total.mean().item(), info["success"].float().mean().item()

    env = to_sb3(environment(64, run["seed"]))
    model = PPO(
        "MlpPolicy", env, n_steps=5, batch_size=64, n_epochs=4, gamma=0.95, seed=run["seed"],
        device="cpu",
    )  # fmt: skip
    curve: list[list[float]] = [[0, *judge(model)]]
    for _ in range(POINTS):
        model.learn(max(run["steps"] // POINTS // hold, 1), reset_num_timesteps=False)
        curve.append([model.num_timesteps * hold, *judge(model)])
    return {"curve": curve}


def downstream(steps: int, seeds: int, jobs: int, skill_steps: int) -> None:
    in_parallel("run-downstream", downstream_runs(steps, seeds, skill_steps), jobs)
    collect_downstream(steps, seeds, skill_steps)


def collect_downstream(steps: int, seeds: int, skill_steps: int) -> None:
    """downstream.csv (areas under the curves) and curves.csv from the runs that are done."""
    rows, curves = [], []
    for run in downstream_runs(steps, seeds, skill_steps):
        path = downstream_directory(run) / "done.json"
        if not path.exists():
            continue
        done = json.loads(path.read_text())
        key = {k: run[k] for k in ("task", "way", "method", "seed")}
        rows.append({
            **key,
            "auc_10": area(done["curve"], 0.1 * steps),
            "auc_100": area(done["curve"], steps),
            "zero_shot": done.get("zero_shot", ""),
            "final_return": done["curve"][-1][1],
            "final_success": done["curve"][-1][2],
            "steps": steps,
            "cpu_seconds": done["cpu_seconds"],
        })  # fmt: skip
        names = ("env_steps", "return", "success")
        curves += [key | dict(zip(names, point, strict=True)) for point in done["curve"]]
    write_csv(RESULTS / "downstream.csv", rows)
    write_csv(RESULTS / "curves.csv", curves)


def area(curve: list[list[float]], budget: float) -> float:
    """Mean return over the first `budget` steps: trapezoids, constant before the first point."""
    import numpy as np

    steps, returns = np.array([point[:2] for point in curve]).T
    grid = np.linspace(0, budget, 201)
    return float(np.trapezoid(np.interp(grid, steps, returns), grid) / budget)


# ---- report


def report() -> None:
    """REPORT.md, skills.png and downstream.png from whatever CSVs are there."""
    from masd_report import write_report

    write_report(RESULTS)


def main(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "all"
    single: dict[str, Callable[[Any], None]] = {
        "run-skills": train_skills,
        "run-downstream": run_downstream,
    }
    if command in single:
        return single[command](json.loads(arguments[1]))
    if command not in ("all", "skills", "downstream", "collect", "report"):
        sys.exit(f"unknown command {command!r}\n\n{__doc__}")
    options = {"jobs": 2, "steps": 960_000, "seeds": 5, "downstream_steps": 300_000}
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key not in options:
            sys.exit(f"unknown option {key!r}, expected one of {', '.join(options)}")
        options[key] = int(float(value))
    jobs, steps, seeds = options["jobs"], options["steps"], options["seeds"]
    if command in ("skills", "all"):
        skills(steps, seeds, jobs)
    if command in ("downstream", "all"):
        downstream(options["downstream_steps"], seeds, jobs, steps)
    if command == "collect":
        collect_skills(steps, seeds)
        collect_downstream(options["downstream_steps"], seeds, steps)
    if command in ("report", "all"):
        report()


if __name__ == "__main__":
    main(sys.argv[1:])

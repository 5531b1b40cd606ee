"""SLIM on the tabletop, measured: skills, reward scale, downstream use, speed.

    python benchmarks/slim.py all [jobs=2] [steps=1000000] [seeds=5]     everything below, in order
    python benchmarks/slim.py skills | downstream | speed                one part
    python benchmarks/slim.py collect                                    CSV of the runs done so far
    python benchmarks/slim.py report                                     tables and plots

Every run is a directory under runs/benchmark/slim and is skipped when it is done, so the command
can be interrupted and issued again. Results are committed as CSV under benchmarks/results/slim with
the command, versions and date in README.md beside them. Learning results are interquartile means
with 95 % bootstrap intervals over seeds (Agarwal et al. 2021), computed by scipy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import in_parallel, train_run, write_csv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "slim"
RUNS = ROOT / "runs" / "benchmark" / "slim"

METHODS = ("slim", "slim-single-critic", "lsd", "diayn", "metra")
SCALES = [(method, scale) for method in METHODS[:2] for scale in (0.1, 10.0)]


# ---- skills: one run


def skill_runs(steps: int, seeds: int) -> list[dict[str, Any]]:
    """All training runs: methods on both starts, and badly scaled rewards on the hard one."""
    parts = (
        [(method, "hard", 1.0, steps) for method in METHODS],
        [(method, "hard", scale, steps) for method, scale in SCALES],
        # Where the tool starts at the cube half the steps show what there is to see.
        [(method, "easy", 1.0, steps // 2) for method in ("slim", "lsd")],
    )
    return [
        {"method": method, "start": start, "scale": scale, "seed": seed, "steps": budget}
        for part in parts
        for seed in range(seeds)
        for method, start, scale, budget in part
    ]


def directory(run: dict[str, Any]) -> Path:
    method = f"{run['start']}-{run['method']}-reach{run['scale']:g}"
    return RUNS / f"{method}-{run['steps']}-seed{run['seed']}"


def train_skills(run: dict[str, Any]) -> None:
    """Train and evaluate one run in this process; results go to done.json."""
    overrides = {
        "seed": run["seed"],
        "total_timesteps": run["steps"],
        "device": "cpu",
        "checkpoint_interval": 50,
        "env_kwargs": {
            "start": run["start"],
            "num_threads": 1,
            "reward_scale": {"reach": run["scale"]},
        },
    }
    train_run(directory(run), run["method"], run["method"], overrides, measure)


def measure(agent: Any) -> dict[str, float]:
    """Metrics of 512 skills, plus consistency and the violations of sampled actions."""
    import torch

    from agents.core.skills import consistency

    env = agent.make_eval_env(512)
    results = agent.evaluate(env, episodes=512)
    sampled = agent.evaluate(env, episodes=512, deterministic=False)
    results["violations_sampled"] = sampled["violations"]
    results["r2_sampled"] = sampled["r2"]
    with agent.using(torch.Generator(agent.device).manual_seed(9)):
        results["consistency"] = consistency(agent, env, seed=9)
    return results


def random_policy(start: str, seed: int) -> dict[str, float]:
    from agents import SLIM
    from agents.core.evaluate import play
    from agents.core.skills import RandomPolicy, skill_metrics

    agent = SLIM(seed=seed, env_kwargs={"start": start, "num_threads": 1}, device="cpu")
    episodes = play(RandomPolicy(agent), agent.make_eval_env(512), seed)
    return skill_metrics(episodes, agent.columns, "sphere")


def skills(steps: int, seeds: int, jobs: int) -> None:
    in_parallel("run-skills", skill_runs(steps, seeds), jobs)
    collect_skills(steps, seeds)


def collect_skills(steps: int, seeds: int) -> None:
    """skills.csv from the runs that are done, and a random policy's rows."""
    rows = []
    for run in skill_runs(steps, seeds):
        if (directory(run) / "done.json").exists():
            rows.append({**run, **json.loads((directory(run) / "done.json").read_text())})
    for start in ("hard", "easy"):
        for seed in range(seeds):
            row = {"method": "random", "start": start, "scale": 1.0, "seed": seed, "steps": 0}
            rows.append({**row, **random_policy(start, seed)})
    write_csv(RESULTS / "skills.csv", rows)


# ---- downstream


WAYS = ("ppo-over-skills", "flat-ppo", "cem-over-skills", "skill-to-goal")
HOLD, HORIZON, EVALUATIONS = 2, 100, 5


def downstream_runs(steps: int, seeds: int, skill_steps: int) -> list[dict[str, Any]]:
    return [
        {"task": task, "way": way, "seed": seed, "steps": steps, "skill_steps": skill_steps}
        for seed in range(seeds)
        for task in ("push", "safe-push")
        for way in WAYS
    ]


def downstream_directory(run: dict[str, Any]) -> Path:
    budget = f"{run['steps']}-after-{run['skill_steps']}"
    return RUNS / f"downstream-{run['task']}-{run['way']}-{budget}-seed{run['seed']}"


def run_downstream(run: dict[str, Any]) -> None:
    """One learner on one task; success over environment steps goes to done.json."""
    import torch

    import agents
    import envs
    from agents.core.hierarchy import SkillEnv

    torch.set_num_threads(1)
    folder = downstream_directory(run)
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    skill = {"method": "slim", "start": "hard", "scale": 1.0, "steps": run["skill_steps"]}
    learned = directory({**skill, "seed": run["seed"]})
    if not (learned / "done.json").exists():
        raise RuntimeError(f"{learned}: not trained to its end, run the skills first")
    agent = agents.load(learned / "last.ckpt", device="cpu")

    def environment(n: int, seed: int) -> envs.BatchedEnv:
        arguments = {"task": run["task"], "start": "hard", "horizon": HORIZON, "num_threads": 1}
        env = envs.make("tabletop", n, "cpu", seed, **arguments)
        if run["way"] == "flat-ppo":
            return env
        return SkillEnv(env, agent, hold=HOLD, rest=True)

    started = time.process_time()
    if run["way"] == "cem-over-skills":
        curve = [plan(agent, environment(128, 1000 + run["seed"]), run["seed"])]
    elif run["way"] == "skill-to-goal":
        curve = [skill_to_goal(agent, environment(256, 1000 + run["seed"]))]
    else:
        curve = ppo(environment, run)
    results = {"curve": curve, "cpu_seconds": time.process_time() - started}
    (folder / "done.json").write_text(json.dumps(results) + "\n")


def ppo(environment: Any, run: dict[str, Any]) -> list[list[float]]:
    """SB3's PPO; returns [environment steps, success rate, violations] rows."""
    import torch
    from stable_baselines3 import PPO

    from envs.adapt import to_sb3

    hold = 1 if run["way"] == "flat-ppo" else HOLD
    env = to_sb3(environment(32, run["seed"]))
    rollout = HORIZON // hold  # one episode of every environment per update, for both
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=rollout,
        batch_size=32 * rollout // 10,  # 10 minibatches an epoch, for both
        gamma=0.99**hold,
        seed=run["seed"],
        device="cpu",
    )
    test = environment(256, 1000 + run["seed"])

    def score() -> tuple[float, float]:
        def act(obs: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(model.predict(obs.numpy(), deterministic=True)[0])

        return success(act, test)

    curve: list[list[float]] = [[0, *score()]]
    for _ in range(EVALUATIONS):
        model.learn(run["steps"] // EVALUATIONS // hold, reset_num_timesteps=False)
        curve.append([model.num_timesteps * hold, *score()])  # whole rollouts
    return curve


def success(act: Any, env: Any) -> tuple[float, float]:
    """Share of episodes that end in success, and violations per episode."""
    import torch

    obs, _ = env.reset(seed=123)
    cost = torch.zeros(env.num_envs)
    info: dict[str, Any] = {}
    for _ in range(env.max_episode_steps):
        obs, _, _, _, info = env.step(act(obs))
        cost += info["cost"]
    return info["success"].float().mean().item(), cost.mean().item()


def plan(agent: Any, env: Any, seed: int) -> list[float]:
    """Zero-shot CEM in skill dynamics learnt without the task."""
    from agents.core.hierarchy import SkillPlanner

    train_env, episodes = agent.make_eval_env(256, horizon=HORIZON), 4
    planner = SkillPlanner(agent, train_env, HOLD, rest=True, episodes=episodes, seed=seed)
    width = agent.env.single_observation_space.shape[0]
    xy = agent.columns[:2]

    def act(obs: Any) -> Any:
        goal = obs[:, None, width + 3 : width + 5]

        def distance(predicted: Any) -> Any:
            return (predicted[..., xy] - goal).norm(dim=-1)

        return planner.plan(obs[:, :width], distance, plans=64, iterations=3, elites=8)

    return [256 * HORIZON * episodes, *success(act, env)]


def skill_to_goal(agent: Any, env: Any) -> list[float]:
    """Zero-shot, without a model: z = φ(goal) - φ(position), METRA's rule; rest near the goal."""
    import torch

    width = agent.env.single_observation_space.shape[0]

    def act(obs: torch.Tensor) -> torch.Tensor:
        offset, goal = obs[:, width : width + 3], obs[:, width + 3 : width + 6]
        here, there = ((goal - o) * agent.config.feature_scale for o in (offset, 0))
        skill = torch.nn.functional.normalize(agent.discovery.displacement(here, there), dim=-1)
        return skill * (offset[:, :2].norm(dim=1, keepdim=True) > 0.035)

    with torch.no_grad():
        return [0, *success(act, env)]


def downstream(steps: int, seeds: int, jobs: int, skill_steps: int) -> None:
    runs = downstream_runs(steps, seeds, skill_steps)
    in_parallel("run-downstream", runs, jobs)
    rows = []
    for run in runs:
        done = json.loads((downstream_directory(run) / "done.json").read_text())
        for env_steps, rate, violations in done["curve"]:
            rows.append({
                **{k: run[k] for k in ("task", "way", "seed")},
                "env_steps": int(env_steps),
                "pretraining_steps": 0 if run["way"] == "flat-ppo" else run["skill_steps"],
                "success": rate,
                "violations": violations,
                "cpu_seconds": done["cpu_seconds"],
            })  # fmt: skip
    write_csv(RESULTS / "downstream.csv", rows)


def main(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "all"
    if command in ("run-skills", "run-downstream"):
        run = json.loads(arguments[1])
        return train_skills(run) if command == "run-skills" else run_downstream(run)
    options = {"jobs": 2, "steps": 1_000_000, "seeds": 5, "downstream_steps": 200_000}
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key not in options:
            sys.exit(f"unknown option {key!r}, expected one of {', '.join(options)}")
        options[key] = int(float(value))
    jobs, steps, seeds = options["jobs"], options["steps"], options["seeds"]
    if command in ("skills", "all"):
        skills(steps, seeds, jobs)
    if command == "collect":
        collect_skills(steps, seeds)
    if command in ("downstream", "all"):
        downstream(options["downstream_steps"], seeds, jobs, steps)
    if command in ("speed", "all"):
        from slim_speed import speed

        write_csv(RESULTS / "speed.csv", speed())
    if command in ("report", "all"):
        from slim_report import report

        report(RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])

"""CORRO and its baselines on offline data of task families, measured.

    python benchmarks/corro.py all [family=point-robot] [seeds=5] [steps=20000] [jobs=2]
    python benchmarks/corro.py train | generator | speed | evaluation    one part
    python benchmarks/corro.py collect | report                          of the runs done so far
    python benchmarks/corro.py train methods=corro,focal                 only these
    python benchmarks/corro.py train family=half-cheetah-vel width=128 steps=6000 seeds=3

The data are made first where there are none (`train.py data`). Every run is a directory under
runs/benchmark/corro and is skipped when it is done, so the command can be interrupted and issued
again. `steps` are gradient steps, half of them the encoder's. Returns are those of the last
checkpoint on the test tasks, after one context trajectory: of the task's own data (IID), or of
what other tasks' policies did in it (OOD). `width` is that of policy and critics, `rows` the
transitions of each of 16 tasks in a policy step; width=256 rows=256 steps=400000 are the papers'.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from common import in_parallel, train_run, write_csv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "corro"
RUNS = ROOT / "runs" / "benchmark" / "corro"

METHODS = (
    "corro",
    "corro-published",
    "corro-reward",
    "focal",
    "unicorn-ss",
    "unicorn-sup",
    "csro",
    "corro-supervised",
    "corro-multi-task",
    "corro-oracle",
)
"""Names of `train.py`."""
KEYS = ("family", "tier", "method", "steps", "width", "rows", "seed")
MUJOCO: dict[str, Any] = {
    "head": "iql", "head_weight": 10.0, "gamma": 0.95, "own_share": 1.0, "lr": 1e-3,
    "encoder_lr": 3e-3,
}  # fmt: skip
"""Of the MuJoCo families, for every method: SAC learns nothing in the steps measured here. Chosen
by returns of ours on training tasks of half-cheetah-vel."""
PUBLISHED = {
    "point-robot": {"contrastive": 358.0, "policy": 35.0},
    "half-cheetah-vel": {"contrastive": 284.0, "policy": 5.4},
}
"""Updates per CPU-second of the original code: 64 queries x 16 CVAE negatives, 16 tasks x 256 rows,
one torch thread, measured on a busy 2-core machine like ours (not in the same run)."""


def dataset(family: str, tiers: str) -> Path:
    """The family's data, generated where there are none."""
    from agents.core.config import build
    from agents.core.generate import DataConfig, generate

    root = RUNS / "data"
    generate(family, build(DataConfig, [], {"tier": tiers, "seed": 0, "out": str(root)}))
    return root / "corro" / family


# ---- training


def all_runs(options: dict[str, Any]) -> list[dict[str, Any]]:
    methods = options["methods"].split(",") if options["methods"] else METHODS
    names = ("family", "tier", "steps", "width", "rows")
    fixed = {name: options[name] for name in names}
    return [
        {**fixed, "method": method, "seed": seed}
        for seed in range(options["seeds"])
        for method in methods
    ]


def directory(run: dict[str, Any]) -> Path:
    return RUNS / "-".join(str(run[name]) for name in KEYS)


def train_one(run: dict[str, Any]) -> None:
    """Train and measure one run in this process; results go to done.json."""
    data = RUNS / "data" / "corro" / run["family"]
    overrides = {
        "env": run["family"], "dataset": str(data), "tier": run["tier"], "seed": run["seed"],
        "total_timesteps": run["steps"], "device": "cpu", "log_interval": 20,
        "hidden": [run["width"]] * 2, "rows": run["rows"],
        **({} if run["family"].startswith("point") else MUJOCO),
    }  # fmt: skip

    def measured(agent: Any) -> dict[str, float]:
        return measure(agent, data, run["tier"])

    train_run(directory(run), run["method"], run["method"], overrides, measured)


def measure(agent: Any, data: Path, tier: str) -> dict[str, float]:
    """Returns and scores on test and training tasks, in and out of distribution."""
    from agents.core.offline import OfflineConfig, choose, evaluate_tasks
    from envs.data import load

    results = {}
    for split in ("test", "train"):
        for name, context in (("iid", "iid"), ("ood", "ood-behaviour"), ("zero", "zero-shot")):
            tasks = choose(load(data, tier), split)
            config = OfflineConfig(str(data), context=context, split=split, tier=tier)
            config.episodes = 20 if tasks.horizon < 50 else 5
            values = evaluate_tasks(agent, tasks, config)
            results |= {f"{split}_{name}": values["return_mean"]}
            if "score_mean" in values:
                results |= {f"{split}_{name}_score": values["score_mean"]}
    return results


def train_all(options: dict[str, Any]) -> None:
    dataset(options["family"], f"{options['tier']},ood")
    in_parallel("run", all_runs(options), options["jobs"])
    collect(options)


def collect(options: dict[str, Any]) -> None:
    """CSV of the runs that are done, and of those that it has already and that are not here."""
    rows = []
    for run in all_runs(options):
        path = directory(run) / "done.json"
        if path.exists():
            rows.append({**run, **json.loads(path.read_text())})
    write_csv(RESULTS / f"{options['family']}-{options['tier']}.csv", rows, KEYS)


# ---- the generator


def generator(options: dict[str, Any]) -> None:
    """Spread over tasks of generated rewards at fixed (s, a), as a share of the true spread."""
    import torch

    from agents import CORRO

    torch.set_num_threads(1)
    data = dataset("point-robot", "mixed,ood")
    common = {"dataset": str(data), "device": "cpu", "env": "point-robot", "generator_share": 0.999}
    plain = {"reconstruction": 0.0, "counterfactual": False, "negatives": "cvae"}
    raw = {**plain, "normalize": False, "contrastive": 1.0}
    variants = {
        "decoder (ours)": {},
        "CVAE, raw, β = 0.2 (published)": {**raw, "generator_option": 0.2},
        "CVAE, raw, β = 0.002": {**raw, "generator_option": 0.002},
        "CVAE, standardised, β = 0.2": {**plain, "generator_option": 0.2},
    }
    rows = []
    for name, settings in variants.items():
        for seed in range(options["seeds"]):
            steps = options["steps"] // 4
            agent = CORRO(**common, **settings, seed=seed, total_timesteps=4 * steps)
            agent.learn(total_timesteps=steps)
            ratio, error = spread(agent)
            values = {"generator": name, "seed": seed, "steps": steps, "spread": ratio}
            rows.append(values | {"error": error})
            print(rows[-1])
    write_csv(RESULTS / "generator.csv", rows)


def spread(agent: Any, rows: int = 256, samples: int = 64) -> tuple[float, float]:
    """Deviation of generated rewards at fixed (s, a) over the true one; and, of a decoder, error.

    The truth is the reward of every training task at the same successor. A decoder answers as each
    of these tasks; a CVAE is sampled.
    """
    import torch

    fixed = torch.Generator().manual_seed(0)
    task = torch.randint(agent.replay.tasks, (rows,), generator=fixed)
    where = agent.replay.draw_steps(task, 1, fixed)[:, 0]
    step, successor = agent.replay.steps(where), agent.data.next_observations.flatten(0, 2)[where]
    truth = -(successor[:, None] - agent.data.tasks).norm(dim=-1)  # [rows, M]
    every = torch.arange(agent.replay.tasks)
    norm, error = agent.coordinates.answer, float("nan")
    if agent.config.negatives == "decoder":
        owner, other = task.repeat(len(every)), every.repeat_interleave(rows)
        asked, seen = (step[name].repeat(len(every), 1)[:, None] for name in ("chosen", "answer"))
        answer = agent.generate.answer(asked, seen, owner, other).view(len(every), rows, -1)
        reward = (answer[..., 0] * norm.variance[0].sqrt() + norm.mean[0]).T
        error = (reward - truth).abs().mean().item()
    else:
        arguments = (step["chosen"], step["answer"], task, samples, fixed)
        reward = agent.generate.sample(*arguments)[..., 0] * norm.variance[0].sqrt()
    return (reward.std(1).mean() / truth.std(1).mean()).item(), error


# ---- speed


def speed(options: dict[str, Any]) -> None:
    """Gradient steps per CPU-second at the original's batch sizes, on synthetic data.

    Against plain PyTorch of the published updates in the same run, in turns, and against what was
    measured of the original code elsewhere.
    """
    import torch
    from corro_plain import Plain, block

    from agents import CORRO
    from envs.data import TaskData

    torch.set_num_threads(1)
    shapes = {"point-robot": (10, [64, 64]), "half-cheetah-vel": (200, [256, 256])}
    rows = []
    for family, (horizon, hidden) in shapes.items():
        probe = CORRO(env=family, code="none", device="cpu")
        obs, actions = (
            space.shape[0]  # type: ignore[index]
            for space in (probe.env.single_observation_space, probe.env.single_action_space)
        )
        draw = torch.Generator().manual_seed(0)
        data = TaskData.build(
            torch.randn(20, 50, horizon + 1, obs, generator=draw),
            torch.rand(20, 50, horizon, actions, generator=draw) * 2 - 1,
            torch.randn(20, 50, horizon, generator=draw),
        )
        plain = Plain(obs, actions, hidden, horizon, 256)
        for phase, share in (("contrastive", 1.0), ("policy", 0.0)):
            blocks = {"plain": block(plain.update if phase == "policy" else plain.contrastive)}
            for method, settings in speed_variants(hidden).items():
                agent = CORRO(
                    env=family, device="cpu", num_tasks=20, encoder_share=share, block=20,
                    total_timesteps=10**6, generator_share=1e-9, dataset="synthetic", **settings,
                )  # fmt: skip
                agent.__dict__["data"] = data
                blocks[method] = partial(agent_block, agent)
            values = steps_per_cpu_second(blocks)
            for method, value in values.items():
                rows.append({
                    "family": family, "method": method, "phase": phase, "updates_per_cpu_s": value,
                    "of_plain": value / values["plain"],
                    "of_original_elsewhere": value / PUBLISHED[family][phase],
                })  # fmt: skip
                print(rows[-1])
    write_csv(RESULTS / "speed.csv", rows)


def speed_variants(hidden: list[int]) -> dict[str, dict[str, Any]]:
    """The published objective at the published batch, and ours at the same."""
    published = {
        "negatives": "cvae", "reconstruction": 0.0, "counterfactual": False, "normalize": False,
        "contrastive": 1.0, "critic_gradient": "aggregator", "layer_norm": False, "entropy": 0.2,
        "code_size": 5,
    }  # fmt: skip
    return {
        "published, 16 x 256": {**published, "rows": 256, "hidden": hidden},
        "ours, 16 x 256": {"rows": 256, "hidden": hidden},
    }


def agent_block(agent: Any) -> int:
    """A block of an agent's gradient steps, and their number."""
    agent.collect()
    agent.update()
    return agent.config.block


def steps_per_cpu_second(
    blocks: dict[str, Callable[[], int]], seconds: float = 3.0, turns: int = 6
) -> dict[str, float]:
    """Of each, after one block to warm up; in turns, so that a busy machine slows all alike."""
    spent, counts = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0)
    for run in blocks.values():
        run()
    for turn in range(1, turns + 1):
        for name, run in blocks.items():
            while spent[name] < seconds * turn / turns:
                started = time.process_time()
                counts[name] += run()
                spent[name] += time.process_time() - started
    return {name: counts[name] / spent[name] for name in blocks}


# ---- evaluation


def evaluation(options: dict[str, Any]) -> None:
    """20 tasks x 5 episodes as one batch against one row at a time, same agent and contexts."""
    import torch

    from agents import CORRO
    from agents.core.offline import OfflineConfig, play_tasks
    from envs.data import load

    torch.set_num_threads(1)
    data_path = dataset("point-robot", "mixed,ood")
    agent = CORRO(dataset=str(data_path), device="cpu", total_timesteps=200).learn()
    data = load(data_path).select(range(20))
    config = OfflineConfig(str(data_path), episodes=5)
    started = time.process_time()
    for _ in range(10):
        play_tasks(agent, data, config)
    batched = (time.process_time() - started) / 10
    single = OfflineConfig(str(data_path), episodes=1)
    started = time.process_time()
    for k in range(20):
        one = data.select([k])
        for _ in range(5):
            play_tasks(agent, one, single)
    alone = time.process_time() - started
    row = {"batched_cpu_s": batched, "one_by_one_cpu_s": alone, "ratio": alone / batched}
    print(row)
    write_csv(RESULTS / "evaluation.csv", [row])


def report() -> None:
    """REPORT.md and a plot from whatever CSVs are there."""
    from corro_report import write_report

    write_report(RESULTS)


def main(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "all"
    if command == "run":
        return train_one(json.loads(arguments[1]))
    parts: dict[str, Callable[[dict[str, Any]], None]] = {
        "train": train_all,
        "generator": generator,
        "speed": speed,
        "evaluation": evaluation,
    }
    if command not in ("all", "collect", "report", *parts):
        sys.exit(f"unknown command {command!r}\n\n{__doc__}")
    options: dict[str, Any] = {
        "family": "point-robot", "tier": "mixed", "methods": "", "steps": 20_000, "seeds": 5,
        "jobs": 2, "width": 64, "rows": 16,
    }  # fmt: skip
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key not in options:
            sys.exit(f"unknown option {key!r}, expected one of {', '.join(options)}")
        options[key] = int(float(value)) if isinstance(options[key], int) else value
    for name in parts if command == "all" else [command]:
        if name in parts:
            parts[name](options)
    if command == "collect":
        collect(options)
    if command in ("report", "all"):
        report()


if __name__ == "__main__":
    main(sys.argv[1:])

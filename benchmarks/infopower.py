"""InfoPower before distractors, measured: learning, what the latent keeps, speed.

    python benchmarks/infopower.py all [jobs=2] [steps=30000] [seeds=3]   everything below, in order
    python benchmarks/infopower.py speed                                  CPU-seconds of an update
    python benchmarks/infopower.py learning [tasks=arm,cartpole] [backgrounds=video,ghost]
                                            [methods=infopower,dreamer]
                                            [scale=default|small|swing|reach|suite|suite-6]   some
    python benchmarks/infopower.py video [run=<directory>]                what a latent kept, to see
    python benchmarks/infopower.py report                                 tables from the CSVs

Every run is a directory under runs/benchmark/infopower and is skipped when it is done. A curve's
points have the updates and the CPU-seconds of training spent so far, so that methods can be
compared at either. Probes read (h, z) of a frozen model on episodes of random actions, the same for
all methods; they are judged on other episodes, and on others before backdrops that no training saw.
Random actions leave a pole hanging, and a probe's episode ends before its backdrop changes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from common import in_parallel, write_csv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "infopower"
RUNS = ROOT / "runs" / "benchmark" / "infopower"
METHODS = (
    "infopower", "dreamer", "cvrl", "repo", "infopower-no-representation", "infopower-no-policy",
    "infopower-no-empowerment", "infopower-literal", "tia-like", "r2dreamer-style", "random",
)  # fmt: skip
KEYS = ("task", "background", "method", "scale", "steps", "seed")
SCALES: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"depth": 8, "deter": 64, "units": 64, "batch_size": 8, "batch_length": 16,
              "horizon": 8, "policy_lr": 1e-3,
              "imagination_starts": 64, "gamma": 0.95, "entropy": 0.1, "prefill": 4000,
              "collect_steps": 5, "gradient_steps": 20, "model_lr": 1e-3, "value_lr": 1e-3,
              "eval_episodes": 64, "empowerment_target": 1.0},
    # For cartpole, where reward depends on what is controlled alone.
    "swing": {"depth": 8, "deter": 64, "units": 64, "batch_size": 16, "batch_length": 16,
              "horizon": 12, "policy_lr": 5e-4, "reward_weight": 5, "imagination_starts": 64,
              "gamma": 0.97, "entropy": 0.003, "prefill": 8000, "num_envs": 32,
              "collect_steps": 25, "gradient_steps": 40, "model_lr": 1e-3, "value_lr": 1e-3,
              "eval_episodes": 64, "empowerment_target": 1.0},
}  # fmt: skip
SCALES["suite"] = SCALES["swing"] | {"eval_episodes": 32}
# Of dm_control's actions a camera sees little after one step: see `inverse_steps`.
SCALES["suite-6"] = SCALES["suite"] | {"inverse_steps": 6}
# What InfoPower finds on the arm is more than this, so that its λ falls again.
SCALES["reach"] = SCALES["swing"] | {"empowerment_target": 0.4}
"""What differs from the configurations' sizes, for all methods alike."""
WORLDS: dict[str, dict[str, Any]] = {
    "default": {}, "small": {"size": 48, "action_repeat": 8, "duration": 200},
    "swing": {"size": 48}, "suite": {"size": 48, "action_repeat": 4},
    "suite-6": {"size": 48, "action_repeat": 4}, "reach": {"size": 48},
}  # fmt: skip
"""And from the environments': episodes of 25 steps have many targets within few steps."""
POINTS = 3  # of a curve, besides the one before training
PROBE_ENVS, PROBE_STEPS = 256, 16  # episodes of random actions, their first steps
PROBED = slice(6, None, 3)  # steps that are read; the first ones h knows little of

DECODER_STEPS, VIDEO_STEPS = 4000, 75  # of the decoder that shows what a latent kept


# ---- learning


def all_runs(options: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"task": task, "background": background, "method": method, "seed": seed,
         "steps": options["steps"], "scale": options["scale"]}
        for seed in range(options["seeds"])
        for task in options["tasks"].split(",")
        for background in options["backgrounds"].split(",")
        for method in options["methods"].split(",")
    ]  # fmt: skip


def directory(run: dict[str, Any]) -> Path:
    name = "-".join(str(run[k]) for k in ("task", "background", "method", "scale", "steps"))
    return RUNS / f"{name.replace('/', ':')}-seed{run['seed']}"


def world(run: dict[str, Any]) -> dict[str, Any]:
    return run.get("world") or {"background": run["background"], **WORLDS[run["scale"]]}


def make(run: dict[str, Any]) -> Any:
    import train
    from agents import InfoPower
    from agents.core.config import build

    layers, _ = train._layers(run["method"])
    overrides = {
        "env": f"pixels/{run['task']}", "env_kwargs": world(run),
        "seed": run["seed"], "total_timesteps": run["steps"], "empowerment_steps": run["steps"],
        "device": "cpu", "log_interval": 1, "replay_capacity": max(run["steps"], 1000),
        **SCALES[run["scale"]],
    }  # fmt: skip
    if run["method"] == "random":
        del overrides["prefill"]  # which never ends
    return InfoPower(config=build(InfoPower.Config, layers, overrides))


def run_learning(run: dict[str, Any]) -> None:
    """Train one run in this process; its curve goes to done.json, the agent to last.ckpt."""
    import torch

    torch.set_num_threads(1)
    folder = directory(run)
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    agent = make(run)
    data = {split: probe_data(run, split, seed) for split, seed in
            (("train", 11), ("test", 12), ("held-out", 13))}  # fmt: skip
    curve = [measure(agent, data, 0.0)]
    spent, last = 0.0, time.process_time()

    def follow(agent: Any, row: dict[str, float]) -> None:
        nonlocal spent, last
        if row["timesteps"] >= len(curve) * run["steps"] / POINTS:
            spent += time.process_time() - last
            curve.append(measure(agent, data, spent) | kept(row))
            print(json.dumps(curve[-1]), flush=True)
            last = time.process_time()

    agent.learn(callback=follow)
    agent.save(folder / "last.ckpt")
    key = {name: run[name] for name in KEYS}
    (folder / "done.json").write_text(json.dumps([key | point for point in curve]) + "\n")


def kept(row: dict[str, float]) -> dict[str, float]:
    """The training's own metrics that go into the table."""
    groups = ("information/", "multiplier/", "policy/")
    return {k.replace("/", "_"): v for k, v in row.items() if k.startswith(groups)}


def probe_data(run: dict[str, Any], split: str, seed: int) -> dict[str, Any]:
    """Images, actions and exact states of random episodes, [T, N, ...] each."""
    import torch

    import envs

    pool = "held-out" if split == "held-out" else "train"
    env = envs.make(f"pixels/{run['task']}", PROBE_ENVS, "cpu", seed, split=pool, **world(run))
    generator = torch.Generator().manual_seed(seed)
    obs, info = env.reset(seed=seed)
    rows: dict[str, list[Any]] = {"obs": [], "action": [], "controllable": [], "distractor": []}
    action = torch.zeros(PROBE_ENVS, *env.single_action_space.shape)  # type: ignore[misc]
    for _ in range(PROBE_STEPS):
        values = {"obs": obs, "action": action, **info}
        for name in rows:
            rows[name].append(values[name])
        action = 2 * torch.rand(action.shape, generator=generator) - 1
        obs, _, _, _, info = env.step(action)
    return {name: torch.stack(values) for name, values in rows.items()}


def encode(agent: Any, data: dict[str, Any]) -> Any:
    """(h, z) of the steps that are probed, [T · N, D + Z]."""
    import torch

    state = agent.initial_state(PROBE_ENVS)["features"]
    noise, features = torch.zeros(PROBE_ENVS, agent.config.stoch), []
    with torch.no_grad():
        for obs, action in zip(data["obs"], data["action"], strict=True):
            state = agent.world.filter(obs, state, action, noise)
            features.append(state)
    return torch.stack(features[PROBED]).flatten(0, 1)


def measure(agent: Any, data: dict[str, Any], cpu_seconds: float) -> dict[str, float]:
    """Returns before known and unknown backdrops, and what the latent keeps."""
    import torch

    import mi
    from agents.core import representation as r

    point = {"timesteps": agent.num_timesteps, "cpu_seconds": cpu_seconds}
    updates = max(agent.num_timesteps - agent.config.prefill, 0) / agent.num_envs
    point["updates"] = updates / agent.config.collect_steps * agent.config.gradient_steps
    for split, name in (("train", "return"), ("held-out", "return_unseen")):
        env = agent.make_eval_env(agent.config.eval_episodes, split=split)
        point[name] = agent.evaluate(env)["return_mean"]
    x = {split: encode(agent, rows) for split, rows in data.items()}
    for what in ("controllable", "distractor"):
        y = {split: rows[what][PROBED].flatten(0, 1).float() for split, rows in data.items()}
        if not y["test"].shape[1]:  # no distractor
            continue
        probes = {"linear": r.linear_probe, "mlp": partial(r.mlp_probe, steps=300)}
        for name, probe in probes.items():
            name = f"{name}_{what}"
            point[name] = probe(x["train"], y["train"], x["test"], y["test"])
            point[f"{name}_unseen"] = probe(x["train"], y["train"], x["held-out"], y["held-out"])
        codes = [principal(x["test"], 16), principal(y["test"], 8)]
        point[f"nats_{what}"] = mi.estimate_mi(*codes, estimator="gaussian_copula").value
    rows = torch.randperm(len(x["test"]), generator=torch.Generator().manual_seed(0))[:400]
    z, state = x["test"][rows], data["test"]["controllable"][PROBED].flatten(0, 1)[rows].float()
    for similarity in (r.rsa, r.linear_cka, r.neighbour_overlap, r.edge_similarity):
        point[similarity.__name__] = similarity(z, state)
    return point


def principal(x: Any, most: int) -> Any:
    """The first principal components [E, most or fewer], whitened."""
    x = x.double() - x.double().mean(0)
    u, s, _ = x.svd()
    count = min(most, int((s > 1e-4 * s[0]).sum()))
    return u[:, :count] * len(x) ** 0.5


def learning(options: dict[str, Any]) -> None:
    in_parallel("run-learning", all_runs(options), options["jobs"])
    collect()


def collect() -> None:
    """curves.csv from every run that is done; rows of other runs stay."""
    rows = []
    for path in sorted(RUNS.glob("*/done.json")):
        rows += json.loads(path.read_text())
    write_csv(RESULTS / "curves.csv", rows, KEYS)


# ---- speed


def speed() -> None:
    """CPU-seconds of one gradient step at B = 16, T = 32, the variants in turn."""
    import statistics

    import torch

    from agents.core.memory import keep_freed

    torch.set_num_threads(1)
    keep_freed()  # as train.py does
    variants = {
        "infopower, bfloat16": ("infopower", True), "infopower, float32": ("infopower", False),
        "dreamer, bfloat16": ("dreamer", True), "dreamer, float32": ("dreamer", False),
    }  # fmt: skip
    learners, times = {}, {name: ([], []) for name in variants}
    for name, (method, bfloat16) in variants.items():
        run = {"task": "arm", "background": "ghost", "method": method, "seed": 0, "steps": 2000,
               "scale": "default"}  # fmt: skip
        learners[name] = agent = make(run)
        agent.world.encoder.low_precision = bfloat16
        if agent.world.decoder is not None:
            agent.world.decoder.low_precision = bfloat16
        agent.learn(total_timesteps=960)  # random actions only
    for round in range(9):
        for name, agent in learners.items():
            marks = [time.process_time()]
            features, _ = agent._update_model(agent.sample())
            marks.append(time.process_time())
            agent._update_behaviour(features)
            marks.append(time.process_time())
            if round:  # the first warms up
                for k in range(2):
                    times[name][k].append(marks[k + 1] - marks[k])
    rows = [
        {
            "variant": name,
            "world_model_cpu_s": statistics.median(model),
            "world_model_min": min(model),
            "world_model_max": max(model),
            "behaviour_cpu_s": statistics.median(behaviour),
        }
        for name, (model, behaviour) in times.items()
    ]
    write_csv(RESULTS / "speed.csv", rows)


# ---- seeing


def video(path: str | None) -> None:
    """The distracted world, beside what a decoder fitted afterwards reads in (h, z)."""
    import torch

    import agents
    from agents.core.plot import write_video
    from agents.core.world import ConvDecoder, pixels

    torch.set_num_threads(1)
    folders = [Path(path)] if path else [p.parent for p in sorted(RUNS.glob("*/last.ckpt"))]
    for folder in folders:
        agent: Any = agents.load(folder / "last.ckpt", device="cpu")
        features, images = (x.flatten(0, 1) for x in watched(agent, 32, seed=11))
        torch.manual_seed(0)
        decoder = ConvDecoder(features.shape[1], images.shape[1:], 16)
        optimizer = torch.optim.Adam(decoder.parameters(), 1e-3)
        for _ in range(DECODER_STEPS):
            rows = torch.randint(len(images), (64,))
            loss = (decoder(features[rows]) - pixels(images[rows])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        features, images = watched(agent, 4, seed=12)  # other episodes
        with torch.no_grad():
            read = decoder(features[:VIDEO_STEPS].flatten(0, 1)).unflatten(0, (-1, 4))
        read = ((read + 0.5).clamp(0, 1) * 255).to(torch.uint8)
        frames = torch.stack([images[:VIDEO_STEPS], read], 2).flatten(1, 2)
        frames = frames.repeat_interleave(2, -1).repeat_interleave(2, -2)
        write_video(RESULTS / f"{folder.name}.mp4", frames, 12)


def watched(agent: Any, num_envs: int, seed: int) -> tuple[Any, Any]:
    """(h, z) and images of an episode that the agent plays, [T, N, ...] each."""
    import torch

    env = agent.make_eval_env(num_envs)
    obs, _ = env.reset(seed=seed)
    state, features, images = agent.initial_state(num_envs), [], []
    with torch.no_grad():
        for _ in range(env.max_episode_steps):
            action, state = agent.act(obs, state, deterministic=True)
            features.append(state["features"])
            images.append(obs)
            obs, *_ = env.step(action)
    return torch.stack(features), torch.stack(images)


def main(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "all"
    if command == "run-learning":
        return run_learning(json.loads(arguments[1]))
    if command not in ("all", "speed", "learning", "video", "report", "collect"):
        sys.exit(f"unknown command {command!r}\n\n{__doc__}")
    options: dict[str, Any] = {
        "jobs": 2, "steps": 30_000, "seeds": 3, "tasks": "arm,cartpole",
        "backgrounds": "video,ghost", "methods": ",".join(METHODS), "run": "",
        "scale": "default",
    }  # fmt: skip
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key not in options:
            sys.exit(f"unknown option {key!r}, expected one of {', '.join(options)}")
        options[key] = int(float(value)) if isinstance(options[key], int) else value
    if command in ("speed", "all"):
        speed()
    if command in ("learning", "all"):
        learning(options)
    if command == "collect":
        collect()
    if command in ("video", "all"):
        video(options["run"] or None)
    if command in ("report", "all"):
        from infopower_report import report

        report(RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])

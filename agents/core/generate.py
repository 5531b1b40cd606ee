"""Generate the offline data of a family of tasks: `python train.py data <family>`.

Behaviours (`agents.core.behaviour`) are scripted or trained, then rolled out in every task, and
what happens is saved as Minari datasets (`envs.data`). Issuing the command again goes on where it
was interrupted.

Shape letters: N rows, K tasks, C checkpoints, E episodes, T steps, D and U features of observations
and actions.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import envs
from agents.core.behaviour import Behaviours, Scripted, TaskSAC, Trained
from agents.core.checkpoint import load_checkpoint, save_checkpoint
from agents.core.config import ConfigError, require
from envs.data import TIERS, TaskData, dataset_id, save
from envs.point import PointRobot
from envs.tasks import TaskFamily

VERSION = 2
"""Of what the same settings generate."""
LEVELS = (0.0, 0.1, 0.25, 0.4, 0.55, 0.75, 1.0)
"""Checkpoints are the first snapshots that reach these shares of the way from the first snapshot's
mean return to the best one's."""
FORESIGHT = 1.0
"""Time constant of the behaviours' discount [s]: γ = 1 - dt / FORESIGHT. Velocity pays at once, so
that a longer one only slows the learning."""
SNAPSHOTS = 20
"""Equal parts of the training after which a snapshot is taken."""
RANDOM, SAMPLE, MODE, PERTURBED = range(4)
"""How an episode is acted: uniformly, sampling from the policy, by its mode, by its mode plus
N(0, 0.3²)."""


@dataclass
class DataConfig:
    """Settings of `python train.py data`."""

    tier: str = "mixed,ood"
    """Which data: random, medium, expert, mixed, ood (see `envs.data.TIERS`), several joined by
    commas, or all."""
    seed: int = 0
    """Of tasks, behaviours and episodes."""
    out: str = "data"
    """Minari's directory; the family is `corro/<family>` in it."""
    tasks: int = 0
    """Number of tasks K; 0 takes the family's (40; 2 for half-cheetah-dir)."""
    episodes: int = 200
    """Episodes of each task and tier; a full grid of tasks and checkpoints for ood, or more."""
    updates: int = 60_000
    """Gradient steps of the behaviour's SAC."""
    finetune: int = 2_000
    """Gradient steps that make a policy of one task, where tasks differ in the body."""
    hidden: int = 128
    """Width of the behaviour's two hidden layers."""
    batch_size: int = 256
    """Transitions of a gradient step."""
    gradient_steps: int = 4
    """Gradient steps after each step of the 40 environments."""

    @property
    def tiers(self) -> list[str]:
        """The tiers that `tier` names."""
        return list(TIERS) if self.tier == "all" else self.tier.split(",")

    def __post_init__(self) -> None:
        known = set(self.tiers) <= set(TIERS)
        require(known, "tier", self.tier, f"some of {', '.join(TIERS)}; or all")
        require(self.seed >= 0, "seed", self.seed, ">= 0")
        self.out = os.path.expanduser(self.out)
        require(self.tasks == 0 or self.tasks >= 2, "tasks", self.tasks, ">= 2, or 0")
        for name in ("episodes", "hidden", "batch_size", "gradient_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.updates >= SNAPSHOTS, "updates", self.updates, f">= {SNAPSHOTS}")
        require(self.finetune >= 0, "finetune", self.finetune, ">= 0")


def generate(family: str, config: DataConfig) -> dict[str, float]:
    """Make what is missing of the family's data; returns each tier's mean return.

    Raises:
        ConfigError: not a family, or the directory holds data of other settings.
    """
    generator = Generator(family, config)
    behaviours = generator.train()
    marks = generator.choose(behaviours)
    return {tier: generator.collect(tier, behaviours, marks) for tier in config.tiers}


@dataclass
class Marks:
    """What the returns of a behaviour's checkpoints say."""

    medium: int
    """The checkpoint nearest to half of the way from random to the best."""
    expert: int
    """The best checkpoint."""
    references: Tensor
    """Returns of random actions and of the best checkpoint, [K, 2]."""


class Generator:
    """Data of one family with one set of settings, in one directory."""

    def __init__(self, family: str, config: DataConfig) -> None:
        self.family, self.config = family, config
        try:
            env = envs.make(family, 1)
        except ValueError as error:
            raise ConfigError(f"data: {error}") from None
        if not isinstance(env, TaskFamily):
            raise ConfigError(
                f"data: {family!r} is no family of tasks, expected one such as ant-dir"
            )
        self.tasks = config.tasks or len(env.tasks)
        self.scripted, self.relabels = isinstance(env, PointRobot), env.relabels
        self.directory = Path(config.out) / "corro" / family
        self.behaviours = self.directory / "behaviours"
        self._describe()

    def training(self, task_id: Tensor) -> Tensor:
        """Whether tasks are for training: the first half; all, of fewer than four."""
        return task_id < (self.tasks // 2 if self.tasks >= 4 else self.tasks)

    def _describe(self) -> None:
        """Write what makes the data what they are, or compare it."""
        from minari.namespace import NAMESPACE_METADATA_FILENAME

        settings = asdict(self.config)
        del settings["tier"], settings["out"]
        split = self.training(torch.arange(self.tasks))
        facts = {
            "description": f"Offline data of the task family {self.family}",
            "generator_version": VERSION,
            "settings": settings | {"tasks": self.tasks},
            "train": split.nonzero()[:, 0].tolist(),
            "test": (~split).nonzero()[:, 0].tolist(),
        }
        file = self.directory / NAMESPACE_METADATA_FILENAME
        try:
            self.behaviours.mkdir(parents=True, exist_ok=True)
            if file.exists():
                there = json.loads(file.read_text())
                version = "generator_version"
                found = there.get("settings", {}) | {version: there.get(version)}
                for name, value in (facts["settings"] | {version: VERSION}).items():
                    if found.get(name) != value:
                        raise ConfigError(
                            f"{name}={value}: {self.directory} holds data of "
                            f"{name}={found.get(name)}; give another out="
                        )
            else:
                file.write_text(json.dumps(facts, indent=1))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"out={self.config.out}: {error}") from None

    def env(self, num_envs: int, seed: int, **kwargs: Any) -> TaskFamily:
        """Rows of the family's tasks."""
        arguments: Any = {"seed": seed, "num_tasks": self.tasks, "task_seed": self.config.seed}
        env = envs.make(self.family, num_envs, **arguments, **kwargs)
        assert isinstance(env, TaskFamily)
        return env

    # ---- behaviours

    def train(self) -> Behaviours:
        """The behaviours, trained as far as they are not."""
        if self.scripted:
            return Scripted(len(LEVELS))
        learner = self._learner()
        if not self._snapshot(SNAPSHOTS).exists():
            self._train(learner)
        chosen = self._chosen(learner)
        single = [] if self.relabels or not self.config.finetune else self._singles(chosen)
        paths = [self._snapshot(i) for i in chosen]
        return Trained(
            [learner.policy_of(path) for path in paths], [learner.policy_of(p) for p in single]
        )

    def _train(self, learner: TaskSAC) -> None:
        """Train from where it stands, with a snapshot after each part."""
        latest, part = self.behaviours / "training.ckpt", self.config.updates // SNAPSHOTS
        if latest.exists():
            learner.load(latest)
        else:
            learner.act_randomly(100)
        with tqdm(total=part * SNAPSHOTS, initial=learner.updates, desc="behaviour") as bar:
            for i in range(learner.updates // part, SNAPSHOTS):
                save_checkpoint(self._snapshot(i), learner.networks())
                learner.learn(part, bar.update)
                learner.save(latest)
        save_checkpoint(self._snapshot(SNAPSHOTS), learner.networks())
        latest.unlink()  # with its memory the largest file of all

    def _snapshot(self, i: int) -> Path:
        return self.behaviours / f"snapshot-{i:02d}.ckpt"

    def _learner(self, task: int | None = None) -> TaskSAC:
        """A SAC of all tasks, or of one."""
        config, seed = self.config, self.config.seed + (0 if task is None else 1 + task)
        ids = None if task is None else [task] * 8
        env = self.env(40 if task is None else 8, seed, task_ids=ids)
        assert env.dt is not None  # only bodies have trained behaviours
        return TaskSAC(
            env, [config.hidden] * 2, config.batch_size, seed, self.relabels,
            config.gradient_steps, capacity=500_000, gamma=1 - env.dt / FORESIGHT,
        )  # fmt: skip

    def _chosen(self, learner: TaskSAC) -> list[int]:
        """Snapshots by return: see `LEVELS`."""
        file = self.behaviours / "returns.ckpt"
        if not file.exists():
            returns = []
            for i in tqdm(range(SNAPSHOTS + 1), desc="snapshots"):
                behaviours = Trained([learner.policy_of(self._snapshot(i))], [])
                own = torch.arange(self.tasks)
                data = self.rollout(behaviours, own, own, 0 * own, 0 * own + MODE, i)
                returns.append(data.returns.mean())
            save_checkpoint(file, {"returns": torch.stack(returns)})
        saved: dict = load_checkpoint(file)  # type: ignore[assignment]
        returns = saved["returns"]
        best = int(returns.argmax())
        if best == 0:
            warnings.warn(
                f"{self.directory}: no snapshot beats the untrained one, whose return is "
                f"{returns[0]:.2f}; it is all the behaviour there is. Give more updates=",
                stacklevel=2,
            )
            return [0] * len(LEVELS)
        share = (returns - returns[0]) / (returns[best] - returns[0])
        return [int((share >= level).nonzero()[0]) for level in LEVELS]

    def _singles(self, chosen: list[int]) -> list[Path]:
        """Policies of single tasks, fine-tuned from the middle checkpoint."""
        middle = load_checkpoint(self._snapshot(chosen[len(chosen) // 2]))
        paths = []
        for task in tqdm(range(self.tasks), desc="single tasks"):
            paths.append(self.behaviours / f"single-{task:03d}.ckpt")
            if not paths[-1].exists():
                learner = self._learner(task)
                learner.load_networks(middle)  # type: ignore[arg-type]
                learner.learn(self.config.finetune)
                save_checkpoint(paths[-1], learner.networks())
        return paths

    def choose(self, behaviours: Behaviours) -> Marks:
        """What medium and expert are, from two episodes of every task and checkpoint."""
        file = self.behaviours / "marks.ckpt"
        if file.exists():
            saved: Any = load_checkpoint(file)
            return Marks(**saved)
        count = behaviours.checkpoints
        task = torch.arange(self.tasks).repeat_interleave(2)
        own = [
            self.rollout(behaviours, task, task, 0 * task + c, 0 * task + SAMPLE, 100 + c).returns
            for c in range(count)
        ]
        uniform = self.rollout(behaviours, task, task, 0 * task, 0 * task + RANDOM, 99).returns
        returns = torch.stack([uniform, *own]).view(count + 1, self.tasks, 2).mean(2)
        mean = returns[1:].mean(1)
        best = int(mean.argmax())
        half = (mean[best] + returns[0].mean()) / 2
        medium = int((mean - half).abs().argmin())
        marks = Marks(medium, best, returns[[0, 1 + best]].t().contiguous())
        save_checkpoint(file, vars(marks))
        return marks

    # ---- episodes

    def collect(self, tier: str, behaviours: Behaviours, marks: Marks) -> float:
        """Roll out and save a tier, task by task; returns the mean return."""
        total = []
        for task in tqdm(range(self.tasks), desc=tier):
            path = Path(self.config.out) / dataset_id(self.family, task, tier)
            if path.exists():
                metadata = json.loads((path / "data" / "metadata.json").read_text())
                total.append(metadata["return_mean"])
                continue
            seed = (1 + TIERS.index(tier)) * 10_000 + task
            data = self.rollout(behaviours, *self.plan(tier, task, behaviours, marks, seed), seed)
            data.tier, data.references = tier, marks.references[task][None]
            total.append(data.returns.mean().item())
            save(
                data, self.config.out, sampler_seed=self.config.seed, return_mean=total[-1],
                reward_terms="reward", behaviour_policy=type(behaviours).__name__,
            )  # fmt: skip
        return sum(total) / len(total)

    def plan(
        self, tier: str, task: int, behaviours: Behaviours, marks: Marks, seed: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What each episode of a task is: task, behaving task, checkpoint, manner; int64 [E]."""
        count, stages = self.config.episodes, behaviours.checkpoints
        if tier == "ood":
            others = torch.tensor([k for k in range(self.tasks) if k != task])
            grid = torch.cartesian_prod(others, torch.arange(stages))
            grid = grid.repeat(max(1, -(-count // len(grid))), 1)
            behaving, checkpoint = grid.unbind(1)
            return torch.full_like(behaving, task), behaving, checkpoint, 0 * behaving + SAMPLE
        own = torch.full((count,), task)
        generator = torch.Generator().manual_seed(seed)
        checkpoint = torch.randint(stages, (count,), generator=generator)
        manner = torch.full((count,), SAMPLE)
        if tier == "random":
            manner[:] = RANDOM
        elif tier != "mixed":
            checkpoint[:] = marks.expert if tier == "expert" else marks.medium
        else:  # 10 % random, 60 % of all of the training, 20 % the best, 10 % the best perturbed
            ends = [int(share * count) for share in (0.1, 0.7, 0.9)]
            manner[: ends[0]] = RANDOM
            checkpoint[ends[1] :] = marks.expert
            manner[ends[1] : ends[2]], manner[ends[2] :] = MODE, PERTURBED
        return own, own, checkpoint, manner

    @torch.no_grad()
    def rollout(
        self,
        behaviours: Behaviours,
        task: Tensor,
        behaving: Tensor,
        checkpoint: Tensor,
        manner: Tensor,
        seed: int,
    ) -> TaskData:
        """One episode in each row, [N] of them, as the data of the first row's task."""
        seed = self.config.seed * 1_000_000 + seed
        env = self.env(len(task), seed, task_ids=task.tolist())
        generator = torch.Generator().manual_seed(seed)
        act = _manners(behaviours, env, behaving, checkpoint, manner, generator)
        obs, _ = env.reset(seed=seed)
        rows, steps = len(task), env.max_episode_steps
        states, running = [obs], torch.ones(rows, dtype=torch.bool)
        lengths, kept = torch.zeros(rows, dtype=torch.int64), []
        for _ in range(steps):
            action = act(obs)
            obs, reward, terminated, _, info = env.step(action)
            lengths += running
            step = (action, reward, terminated, env.velocity(info))
            kept.append([v * running.view(-1, *[1] * (v.dim() - 1)) for v in step])
            states.append(info["final_obs"] * running[:, None])
            running = running & ~terminated
        actions, rewards, terminations, velocities = (
            torch.stack(values, 1)[None] for values in zip(*kept, strict=True)
        )
        env.close()
        return TaskData.build(
            torch.stack(states, 1)[None],
            actions,
            rewards,
            terminations=terminations,
            velocity=velocities,
            lengths=lengths[None],
            behaviour=torch.where(manner == RANDOM, -1, behaving)[None],
            checkpoint=torch.where(manner == RANDOM, -1, checkpoint)[None],
            tasks=env.tasks[task[:1]],
            task_ids=task[:1],
            training=self.training(task[:1]),
            family=self.family,
        )


def _manners(
    behaviours: Behaviours,
    env: TaskFamily,
    behaving: Tensor,
    checkpoint: Tensor,
    manner: Tensor,
    generator: torch.Generator,
) -> Callable[[Tensor], Tensor]:
    """Actions [N, U] of observations [N, D], each row in its manner."""
    shape = (env.num_envs, *env.single_action_space.shape)  # type: ignore[misc]
    uniform, perturbed = ((manner == m)[:, None] for m in (RANDOM, PERTURBED))
    noise, task = (manner == SAMPLE).float(), env.tasks[behaving]

    def act(obs: Tensor) -> Tensor:
        action = behaviours.act(obs, task, behaving, checkpoint, noise, generator)
        action = action + 0.3 * perturbed * torch.randn(shape, generator=generator)
        draw = 2 * torch.rand(shape, generator=generator) - 1
        return torch.where(uniform, draw, action).clamp(-1, 1)

    return act

"""Evaluation on datasets of tasks: contexts by name, normalised scores, intervals, fitted Q.

    python train.py eval <checkpoint> … dataset=<directory or id> context=ood-behaviour json=…

All tasks and episodes are one batch. Agents that read contexts have a method `context_state`
(`CORRO.context_state`); others play as they are. Several checkpoints are taken for seeds of one
experiment: evaluated one by one and summarised together.

Shape letters: K tasks, E episodes of a task, N = K·E rows, T steps, S checkpoints, the seeds.
"""

from __future__ import annotations

import csv
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from torch import Tensor

import envs
from agents.core.config import ConfigError, require
from agents.core.evaluate import play
from envs.base import BatchedEnv
from envs.data import MissingTierError, TaskData, load

Context = tuple[Tensor, Tensor, Tensor, Tensor]
"""Observation [N, T, D], action [N, T, U], reward [N, T] and next observation [N, T, D]."""


@dataclass
class OfflineConfig:
    """Settings of `python train.py eval <checkpoint> dataset=…`."""

    dataset: str
    """Directory or Minari id."""
    context: Literal["iid", "ood-behaviour", "random", "online", "zero-shot"] = "iid"
    """Where contexts come from: the task's own data, what other tasks' policies did in the task
    (tier ood), uniformly random actions, random actions in the first half of an episode and the
    policy with the code so far from there on, or nowhere."""
    k: int = 1
    """Trajectories of a context."""
    split: Literal["train", "test", "task-ood", "all"] = "test"
    """Which tasks; task-ood are the test tasks with a parameter outside the training tasks' range.
    Data that name no test task are evaluated as a whole."""
    tier: str = "mixed"
    """Which data are the task's own."""
    episodes: int = 20
    """Contexts, and as many episodes, of each task."""
    seed: int = 1
    """Of contexts and episodes."""
    fqe: int = 0
    """Gradient steps of fitted Q evaluation, which needs no simulator; 0 leaves it out. Values
    spread from an episode's end to its start: of a constant reward over 200 steps, 400 find 37 %,
    2000 79 %, so that long episodes need many."""
    diagnostics: bool = False
    """Measure the data and the codes as well: coverage, information, leaks."""
    out: str = ""
    """Directory of tables and plots."""

    def __post_init__(self) -> None:
        """Check ranges."""
        self.out, self.dataset = os.path.expanduser(self.out), os.path.expanduser(self.dataset)
        require(bool(self.dataset), "dataset", self.dataset, "a directory or Minari id")
        for name in ("k", "episodes"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.fqe >= 0, "fqe", self.fqe, "at least 0")


class Predictor:
    """Anything with SB3's `predict`, as a policy to be played.

    Args:
        model: has `predict(observation, state, episode_start, deterministic)`.
        env: id of the environment to play in, such as `gym/Pendulum-v1`; data of a family name
            theirs.
    """

    device = torch.device("cpu")  # of what it is shown; the model's own is its affair

    def __init__(self, model: Any, env: str = "") -> None:
        self.model, self.env = model, env
        self.spaces = model.observation_space, model.action_space

    def make_eval_env(self, num_envs: int) -> BatchedEnv:
        """`num_envs` copies of `env`.

        Raises:
            ConfigError: there is none.
        """
        try:
            return envs.make(self.env, num_envs)
        except ValueError as error:
            raise ConfigError(f"env of the Predictor: {error}") from None

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        """Nothing is carried yet."""
        return {}

    def act(self, obs: Tensor, state: dict[str, Any], deterministic: bool) -> tuple[Tensor, Any]:
        """Actions [N, U], and the memory of a recurrent model, as it gave it."""
        action, memory = self.model.predict(
            obs.cpu().numpy(), state=state.get("memory"), deterministic=deterministic
        )
        carried = {} if memory is None else {"memory": memory}
        return torch.as_tensor(action, device=obs.device), carried


def choose(data: TaskData, split: str) -> TaskData:
    """The tasks of a split.

    Raises:
        ConfigError: there are none.
    """
    if split == "all" or bool(data.training.all()):
        return data
    keep = data.training == (split == "train")
    if split == "task-ood":
        train = data.tasks[data.training]
        require(len(train) > 0, "split", split, "a dataset with training tasks to compare with")
        beyond = (data.tasks < train.amin(0)) | (data.tasks > train.amax(0))
        keep = ~data.training & beyond.any(1)
    if not bool(keep.any()):
        raise ConfigError(f"split={split}: the dataset has no such task")
    return data.select(keep.nonzero()[:, 0])


def spaces_of(agent: Any) -> tuple[gym.Space, gym.Space]:
    """Of one observation and one action."""
    if isinstance(agent, Predictor):
        return agent.spaces
    return agent.env.single_observation_space, agent.env.single_action_space


def require_fit(agent: Any, data: TaskData, dataset: str) -> None:
    """Whether an agent can read the data.

    Raises:
        ConfigError: its spaces are not those of the data.
    """
    arrays = {"observations": data.states, "actions": data.actions}
    for (name, array), space in zip(arrays.items(), spaces_of(agent), strict=True):
        if tuple(array.shape[3:]) != space.shape:
            raise ConfigError(
                f"dataset={dataset}: expected {name} of shape {space.shape}, as the agent has, got "
                f"{tuple(array.shape[3:])}"
            )


def make_env(agent: Any, data: TaskData, episodes: int, device: Any) -> BatchedEnv:
    """One environment whose rows are E episodes of every task, task by task."""
    if not data.family:  # foreign data: one task, that of the agent's own environment
        return agent.make_eval_env(data.num_tasks * episodes)
    ids = np.arange(data.num_tasks).repeat(episodes)
    return envs.make(data.family, len(ids), device, 0, tasks=data.tasks, task_ids=ids)


def require_limit(steps: int, name: str, value: object) -> int:
    """The time limit of an environment, for a setting that needs one.

    Raises:
        ConfigError: there is none.
    """
    limit = "an environment whose episodes have a time limit (max_episode_steps)"
    require(steps < sys.maxsize, name, value, limit)
    return steps


def other_behaviour(dataset: str, data: TaskData) -> TaskData:
    """What other tasks' policies did in each of the tasks (tier ood).

    Raises:
        ConfigError: it lacks one of the tasks.
        MissingTierError: the dataset has no such tier.
        DataError: it is refused.
    """
    other = load(dataset, "ood").to(data.states.device)
    where = {int(i): k for k, i in enumerate(other.task_ids)}
    for i in data.task_ids.tolist():
        if i not in where:
            raise ConfigError(f"dataset={dataset}: expected task {i} in tier ood, as in the others")
    return other.select([where[i] for i in data.task_ids.tolist()])


@torch.no_grad()
def draw_contexts(
    agent: Any, data: TaskData, config: OfflineConfig, generator: torch.Generator, device: Any
) -> tuple[Context, Tensor]:
    """Contexts [N, k·T, ...] of every task by the protocol, and the mask of their steps.

    Raises:
        MissingTierError: the protocol needs other tasks' behaviour and the data have none.
    """
    if config.context in ("random", "online"):
        return _explore(agent, data, config, generator, device)
    source = data
    if config.context == "ood-behaviour":
        source = other_behaviour(config.dataset, data)
    task = torch.arange(source.num_tasks, device=device)
    batch = source.sample_episodes(task, config.episodes * config.k, generator)
    names = ("observations", "actions", "rewards", "next_observations", "mask")
    *fields, mask = (
        batch[name].unflatten(1, (config.episodes, config.k)).flatten(0, 1).flatten(1, 2)
        for name in names
    )
    mask = mask > 0
    if config.context == "zero-shot":
        mask = torch.zeros_like(mask)
    return _in_front(fields, mask)


def _in_front(fields: list[Tensor], mask: Tensor) -> tuple[Context, Tensor]:
    """Steps [N, T, ...] that exist first, as those who read them in order expect, and the mask."""
    order = (~mask).to(torch.int8).argsort(stable=True, dim=1)
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    obs, action, reward, next_obs = (field[rows, order] for field in fields)
    return (obs, action, reward, next_obs), mask[rows, order]


def _explore(
    agent: Any, data: TaskData, config: OfflineConfig, generator: torch.Generator, device: Any
) -> tuple[Context, Tensor]:
    """Contexts of the agent's own: random, or (online) random first and then by its code so far."""
    env = make_env(agent, data, config.episodes, device)
    horizon = require_limit(env.max_episode_steps, "context", config.context)
    task = data.tasks.repeat_interleave(config.episodes, 0)
    space: Any = env.single_action_space
    low, high = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
    steps: list[tuple[Tensor, ...]] = []
    alive: list[Tensor] = []
    obs, _ = env.reset(seed=config.seed)
    for episode in range(config.k):
        running = torch.ones(env.num_envs, dtype=torch.bool, device=device)
        for t in range(horizon):
            unit = torch.rand((env.num_envs, *low.shape), generator=generator, device=device)
            action = low + (high - low) * unit
            if config.context == "online" and (episode or 2 * t >= horizon):
                action = agent.act(obs, _state(agent, _stack(steps, alive), task), True)[0]
            next_obs, reward, terminated, truncated, info = env.step(action)
            steps.append((obs, action, reward, info["final_obs"]))
            alive.append(running)
            running = running & ~(terminated | truncated)
            obs = next_obs
        if episode < config.k - 1 and bool((env.elapsed != 0).any()):
            obs, _ = env.reset()
    return _stack(steps, alive)


def _stack(steps: list[tuple[Tensor, ...]], alive: list[Tensor]) -> tuple[Context, Tensor]:
    fields = [torch.stack(each, 1) for each in zip(*steps, strict=True)]
    return _in_front(fields, torch.stack(alive, 1))


def _state(agent: Any, context: tuple[Context, Tensor], task: Tensor) -> dict[str, Tensor]:
    """What the agent plays with after contexts, where it reads any."""
    if not hasattr(agent, "context_state"):
        return agent.initial_state(len(task))
    return agent.context_state(*context, task)


@dataclass
class Outcome:
    """What one agent did.

    Attributes:
        returns: of every episode [K, E].
        state: what it played with, [K·E, ...] each.
        horizon: steps after which its environment ends an episode, `sys.maxsize` if it does not.
    """

    returns: Tensor
    state: dict[str, Tensor]
    horizon: int


def play_tasks(agent: Any, data: TaskData, config: OfflineConfig) -> Outcome:
    """Draw contexts and play one episode after each; all tasks and episodes as one batch.

    Args:
        agent: an agent of ours, or a `Predictor`.
        data: the tasks, on the agent's device.
        config: the protocol.
    """
    require_fit(agent, data, config.dataset)
    device = data.states.device
    generator = torch.Generator(device).manual_seed(config.seed)
    task = data.tasks.repeat_interleave(config.episodes, 0)
    if hasattr(agent, "context_state"):
        state = _state(agent, draw_contexts(agent, data, config, generator, device), task)
    else:
        state = agent.initial_state(len(task))
    env = make_env(agent, data, config.episodes, device)
    played = play(agent, env, config.seed, deterministic=True, state=state)
    return Outcome(played.returns.view(data.num_tasks, -1), state, env.max_episode_steps)


def evaluate_agent(agent: Any, episodes: int) -> dict[str, float]:
    """`evaluate_tasks` on the test tasks of the agent's own dataset, after their own contexts.

    `ood/…` are the same after contexts of other tasks' policies, where the dataset has any.

    Args:
        agent: its config names `dataset`, `tier` and `seed`.
        episodes: in all, at least.
    """
    config = agent.config
    data = choose(load(config.dataset, config.tier), "test").to(agent.device)
    count = -(-episodes // data.num_tasks)
    protocol = OfflineConfig(config.dataset, tier=config.tier, episodes=count, seed=config.seed)
    metrics = evaluate_tasks(agent, data, protocol)
    with suppress(MissingTierError):
        protocol.context = "ood-behaviour"
        other = evaluate_tasks(agent, data, protocol)
        metrics |= {f"ood/{name}": value for name, value in other.items()}
    return metrics


def evaluate_tasks(agent: Any, data: TaskData, config: OfflineConfig) -> dict[str, float]:
    """`return_mean`, `return_std` and, where the data have references, `score_mean` (0 to 100)."""
    return summarise(play_tasks(agent, data, config).returns[None], data)


def scored(data: TaskData) -> Tensor:
    """Which tasks have references that scores can be measured by, the random one's below, [K]."""
    low, high = data.references.unbind(1)
    return torch.isfinite(low) & torch.isfinite(high) & (high > low)


def summarise(returns: Tensor, data: TaskData, seed: int = 0) -> dict[str, float]:
    """Metrics of returns [S, K, E].

    Returns:
        `return_mean`; `return_std` over tasks' means, over seeds' where there is one task, over
        episodes where there is one of both; `episodes`; `score_mean` of the scores normalised by
        tasks' references, and their interquartile mean with its 95 % bootstrap interval, `iqm`,
        `iqm_low`, `iqm_high`. Where no task has references these are of returns and named so,
        `return_iqm`, …. A single episode has no interval.

    Warns:
        UserWarning: some of the references are missing or not ordered; their tasks have no score.
    """
    means, known = _units(returns), scored(data).cpu()
    metrics = {
        "return_mean": means.mean().item(),
        "return_std": (means.mean(0) if means.shape[1] > 1 else means).std(correction=0).item(),
        "episodes": float(returns.numel()),
    }
    prefix = "return_"
    if bool(known.any()):
        low, high = data.references.cpu()[known].unbind(1)
        scores = 100 * (returns.cpu()[:, known] - low[:, None]) / (high - low)[:, None]
        means, prefix = _units(scores), ""
        metrics["score_mean"] = means.mean().item()
    if not bool(known.all()) and bool(data.references.isfinite().any()):
        tasks = ", ".join(map(str, data.task_ids.cpu()[~known].tolist()))
        what = "expected references, the random one below the best; left out of scores"
        warnings.warn(f"tasks {tasks}: {what}", stacklevel=2)
    ends = ("", "_low", "_high") if means.numel() > 1 else ("",)
    values = stratified_iqm(means.numpy(), seed)
    return metrics | {f"{prefix}iqm{end}": v for end, v in zip(ends, values, strict=False)}


def _units(values: Tensor) -> Tensor:
    """What is resampled of [S, K, E]: means [S, K], or episodes [1, E] of one task and seed."""
    return (values.mean(2) if values[..., 0].numel() > 1 else values[0]).cpu()


def stratified_iqm(
    scores: np.ndarray, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Interquartile mean of scores [S, K] with a 95 % stratified bootstrap interval.

    Seeds are resampled with replacement within every task (Agarwal et al. 2021). A single seed has
    nothing to resample; then tasks are, which says how much the choice of tasks matters (or
    episodes of the only one, see `summarise`).
    """
    rng = np.random.default_rng(seed)
    runs, tasks = scores.shape
    if runs > 1:
        index = rng.integers(runs, size=(resamples, runs, tasks))
        drawn = np.take_along_axis(scores[None], index, 1)
    else:
        drawn = scores[:, rng.integers(tasks, size=(resamples, tasks))].swapaxes(0, 1)
    values = stats.trim_mean(drawn.reshape(resamples, -1), 0.25, axis=1)
    centre = stats.trim_mean(scores.reshape(-1), 0.25)
    low, high = np.quantile(values, (0.025, 0.975))
    return float(centre), float(low), float(high)


def compare_rankings(estimates: np.ndarray, truth: np.ndarray, k: int = 1) -> dict[str, float]:
    """How well estimated returns [S, K] rank S policies on K tasks (Fu et al. 2021).

    Returns:
        `rank_correlation`, Spearman's, mean over the tasks that have one; `regret@k`, how much
        worse than the best policy the best of the k highest estimates is, as a share of the range,
        mean over tasks; and `absolute_error`. The first two are left out where nothing can be
        ranked: a single policy, or ties in every task.
    """
    error = {"absolute_error": float(np.abs(estimates - truth).mean())}
    varied = (np.ptp(estimates, 0) > 0) & (np.ptp(truth, 0) > 0)
    if not varied.any():
        return error
    best, worst = truth.max(0), truth.min(0)
    chosen = np.take_along_axis(truth, np.argsort(-estimates, 0)[:k], 0).max(0)
    pairs = zip(estimates.T[varied], truth.T[varied], strict=True)
    ranks = [stats.spearmanr(estimate, true).statistic for estimate, true in pairs]
    return {
        "rank_correlation": float(np.mean(ranks)),
        f"regret@{k}": float(np.mean((best - chosen) / np.maximum(best - worst, 1e-12))),
        **error,
    }


def evaluate_checkpoints(
    agents: Sequence[Any], names: Sequence[str], config: OfflineConfig
) -> dict[str, float]:
    """Evaluate each agent, summarise all of them, and write tables and plots to `config.out`.

    Returns:
        Metrics of `summarise` over all; `return_mean/<name>` of each where there are several;
        `fqe/…` and the diagnostics where they are asked for.

    Raises:
        ConfigError: the agents' spaces are not those of the data, or `fqe` without a time limit.
    """
    from agents.core import diagnose

    device = agents[0].device
    data = choose(load(config.dataset, config.tier), config.split).to(device)
    outcomes = [play_tasks(agent, data, config) for agent in agents]
    returns = torch.stack([outcome.returns for outcome in outcomes])
    metrics = summarise(returns, data)
    if len(agents) > 1:
        means = returns.mean((1, 2)).tolist()
        metrics |= {f"return_mean/{name}": v for name, v in zip(names, means, strict=True)}
    out = Path(config.out) if config.out else None
    if config.fqe:
        values = [
            diagnose.fitted_q(
                agent,
                data,
                outcome.state,
                config.fqe,
                require_limit(outcome.horizon, "fqe", config.fqe),
                config.seed,
                spaces_of(agent)[1],
            )
            for agent, outcome in zip(agents, outcomes, strict=True)
        ]
        estimates, truth = torch.stack(values).cpu().numpy(), returns.mean(2).cpu().numpy()
        metrics["fqe/return_mean"] = float(estimates.mean())
        ranking = compare_rankings(estimates, truth)
        metrics |= {f"fqe/{name}": value for name, value in ranking.items()}
    if config.diagnostics:
        metrics |= diagnose.measure(agents[0], data, config, out)
    if out is not None:
        write_table(out / "tasks.csv", data, returns, names)
        diagnose.plot_scores(out / "tasks.png", data, returns, names)
    return metrics


def write_table(path: Path, data: TaskData, returns: Tensor, names: Sequence[str]) -> None:
    """A row per checkpoint and task: parameters, mean and deviation of returns, score."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = torch.stack([data.normalise(each) for each in returns]).mean(2)
    scores = scores.masked_fill(~scored(data), torch.nan)
    columns = ["checkpoint", "task_id", "parameters", "return", "return_std", "score"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for s, name in enumerate(names):
            for k, task_id in enumerate(data.task_ids.tolist()):
                parameters = " ".join(f"{v:.5g}" for v in data.tasks[k].tolist())
                mean, std = returns[s, k].mean().item(), returns[s, k].std(correction=0).item()
                numbers = (f"{v:.5g}" for v in (mean, std, scores[s, k].item()))
                writer.writerow([name, task_id, parameters, *numbers])

"""Offline evaluation where data are few, odd or damaged: nothing changes its meaning in silence."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
import train
from agents import CORRO
from agents.core import diagnose, offline
from agents.core.config import ConfigError
from agents.core.generate import DataConfig, generate
from agents.core.offline import OfflineConfig
from envs.data import DataError, TaskData, load
from envs.tasks import TaskFamily


class Idle:
    """Does nothing, and carries whatever it is given."""

    def act(self, obs: Any, state: Any, deterministic: bool) -> tuple[Any, Any]:
        return torch.zeros(len(obs), 1), state


def episodes(states: torch.Tensor, rewards: torch.Tensor, **facts: Any) -> TaskData:
    """Of states [K, E, T + 1, ...] and rewards [K, E, T], actions zero."""
    return TaskData.build(states, torch.zeros(*rewards.shape, 1), rewards, **facts)


# ---- fitted Q


@pytest.mark.parametrize("rows", [0, 30])
def test_fitted_q_is_the_mean_over_all_starts(rows: int) -> None:
    """Nobody moves and the reward is where one stands: at 2 in the first episode, at 0 else."""
    states = torch.zeros(1, 4, 3, 1)
    states[:, 0] = 2
    state = {"code": torch.zeros(rows, 1)} if rows else {}
    data = episodes(states, states[:, :, :-1, 0].clone())
    value = diagnose.fitted_q(Idle(), data, state, 80, 2)
    assert value.item() == pytest.approx(1, abs=0.4)  # of the first start alone 4


def test_fitted_q_leaves_out_padding_and_keeps_tasks_apart() -> None:
    """Task k pays k a step; of the second task two episodes of three are padding."""
    states = torch.arange(1.0, 3).view(2, 1, 1, 1).expand(2, 3, 3, 1).clone()
    lengths = torch.tensor([[2, 2, 2], [2, 0, 0]])
    data = episodes(states, states[:, :, :-1, 0].clone(), lengths=lengths)
    for state in ({}, {"code": torch.zeros(8, 1)}):
        value = diagnose.fitted_q(Idle(), data, state, 80, 2)
        assert torch.allclose(value, torch.tensor([2.0, 4.0]), atol=0.3)


def test_fitted_q_is_of_whole_episodes_however_short_the_recorded_ones_are() -> None:
    data = episodes(torch.zeros(1, 8, 4, 1), torch.ones(1, 8, 3))
    value = diagnose.fitted_q(Idle(), data, {}, 150, 6)
    assert value.item() == pytest.approx(6, abs=1)


def test_fitted_q_of_flags_and_of_images() -> None:
    data = episodes(torch.zeros(1, 4, 4, 3, 6, 6, dtype=torch.uint8), torch.ones(1, 4, 3))
    value = diagnose.fitted_q(Idle(), data, {"first": torch.ones(2)}, 60, 3)
    assert value.item() == pytest.approx(3, abs=0.5)


def test_what_needs_a_time_limit_says_so() -> None:
    with pytest.raises(ConfigError, match="fqe=5: expected an environment whose episodes have a"):
        offline.require_limit(sys.maxsize, "fqe", 5)
    assert offline.require_limit(7, "fqe", 5) == 7


def test_fitted_q_says_that_it_knows_no_memory() -> None:
    class Remembering(Idle):
        def act(self, obs: Any, state: Any, deterministic: bool) -> tuple[Any, Any]:
            return torch.zeros(len(obs), 1), {"seen": state["seen"] + 1}

    data = episodes(torch.zeros(1, 2, 3, 1), torch.ones(1, 2, 2))
    with pytest.warns(UserWarning, match="fqe: what the agent carries changes"):
        diagnose.fitted_q(Remembering(), data, {"seen": torch.zeros(2)}, 1, 2)


# ---- summaries


def test_one_task_and_one_seed_vary_over_episodes() -> None:
    data = episodes(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 1))
    returns = torch.arange(20.0).view(1, 1, 20)
    metrics = offline.summarise(returns, data)
    assert metrics["return_std"] == pytest.approx(returns.std(correction=0).item())
    assert metrics["return_iqm"] == pytest.approx(9.5)
    assert metrics["return_iqm_low"] < 8 < 11 < metrics["return_iqm_high"]
    one = offline.summarise(returns[..., :1], data)
    assert "return_iqm" in one and "return_iqm_low" not in one
    seeds = offline.summarise(returns.view(4, 1, 5), data)
    assert seeds["return_std"] == pytest.approx(returns.view(4, 5).mean(1).std(correction=0).item())


def test_a_task_without_ordered_references_has_no_score_and_the_others_keep_theirs() -> None:
    references = torch.tensor([[0.0, 10.0], [0.0, 10.0], [5.0, 4.9], [0.0, torch.nan]])
    facts = {"references": references, "task_ids": torch.tensor([4, 7, 9, 11])}
    data = episodes(torch.zeros(4, 1, 2, 1), torch.zeros(4, 1, 1), **facts)
    returns = torch.tensor([4.0, 6.0, 5.0, 1.0]).view(1, 4, 1)
    with pytest.warns(UserWarning, match="tasks 9, 11: expected references"):
        metrics = offline.summarise(returns, data)
    assert metrics["return_mean"] == 4
    assert metrics["score_mean"] == metrics["iqm"] == pytest.approx(50)
    assert "return_iqm" not in metrics
    data.references = torch.full((4, 2), torch.nan)
    metrics = offline.summarise(returns, data)  # of returns, and says so
    assert metrics["return_iqm"] == pytest.approx(4.5)
    assert not {"iqm", "score_mean"} & metrics.keys()


# ---- data of point-robots


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("robots")
    generate("point-robot", DataConfig(tasks=4, episodes=6, out=str(out)))
    return out


class Searcher(Idle):
    """A policy that reads contexts; its code is one number, of the highest reward seen."""

    device = torch.device("cpu")
    env = envs.make("point-robot", 1)

    def __init__(self, dataset: Path | str = "") -> None:
        self.config = SimpleNamespace(dataset=str(dataset), tier="mixed", seed=0)

    def context_state(self, context: Any, mask: Any, task: Any) -> dict[str, torch.Tensor]:
        return {"code": context[2].masked_fill(~mask, -100).amax(1, keepdim=True)}

    def act(self, obs: Any, state: Any, deterministic: bool) -> tuple[Any, Any]:
        return state["code"].expand(-1, 2).clamp(-1, 1), state


def test_damaged_contexts_are_no_missing_contexts(
    robots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "task_information", lambda data: {})  # slow
    evaluated = offline.evaluate_agent(Searcher(robots), 4)
    assert {"return_mean", "ood/return_mean"} <= evaluated.keys()
    shutil.copytree(robots, tmp_path, dirs_exist_ok=True)
    family = tmp_path / "corro" / "point-robot"
    shutil.rmtree(family / "cache")
    (family / "task-002-ood-v0/data/main_data.hdf5").write_bytes(b"damaged")
    config = OfflineConfig(str(tmp_path))
    with pytest.raises(DataError, match="task-002-ood"):
        offline.evaluate_agent(Searcher(tmp_path), 4)
    with pytest.raises(DataError, match="task-002-ood"):
        diagnose.measure(Searcher(tmp_path), load(tmp_path), config, None)
    for task in range(4):
        shutil.rmtree(family / f"task-{task:03d}-ood-v0")
    assert "ood/return_mean" not in offline.evaluate_agent(Searcher(tmp_path), 4)
    assert "code/I(z;task)" not in diagnose.measure(
        Searcher(tmp_path), load(tmp_path), config, None
    )


def test_a_single_dataset_has_no_contexts_of_others(robots: Path) -> None:
    single = robots / "corro/point-robot/task-003-mixed-v0"
    assert not [key for key in offline.evaluate_agent(Searcher(single), 2) if "ood" in key]
    config = OfflineConfig(str(single), context="ood-behaviour", episodes=2)
    with pytest.raises(DataError, match="tier"):
        offline.evaluate_tasks(Searcher(), load(single), config)
    with pytest.raises(ConfigError, match="split='task-ood': expected a dataset with training"):
        offline.choose(load(single), "task-ood")


def test_tasks_that_the_contexts_lack_are_named(robots: Path) -> None:
    data = load(robots)
    data.task_ids = torch.tensor([0, 1, 2, 8])
    with pytest.raises(ConfigError, match="expected task 8 in tier ood"):
        offline.other_behaviour(str(robots), data)


def test_codes_of_one_number_are_drawn(robots: Path, tmp_path: Path) -> None:
    diagnose.plot_codes(
        tmp_path / "codes.png", load(robots), {"iid": (torch.randn(8, 1), torch.arange(8) // 2)}
    )
    assert (tmp_path / "codes.png").stat().st_size > 5000


def test_last_is_the_result_and_best_stands_beside_it(
    robots: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings: dict[str, Any] = {
        "dataset": str(robots), "device": "cpu", "total_timesteps": 20, "block": 10, "hidden": [8],
        "encoder_hidden": [8], "task_batch": 2, "rows": 4, "queries": 2,
    }  # fmt: skip
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    for seed, name in enumerate(("last", "best")):
        CORRO(**settings, seed=seed).save(run / f"{name}.ckpt")

    def evaluated(*arguments: str) -> dict[str, float]:
        rest = [f"dataset={robots}", "episodes=2", f"json={tmp_path / 'a.json'}", "fqe=2"]
        assert train.main(["eval", *arguments, *rest]) == 0, capsys.readouterr().err
        return json.loads((tmp_path / "a.json").read_text())

    both = evaluated(f"run={run}", f"out={out}")
    last, best = (evaluated(str(run / f"{name}.ckpt")) for name in ("last", "best"))
    assert last["return_mean"] != best["return_mean"]
    assert both == last | {f"best/{name}": value for name, value in best.items()}
    assert "fqe/absolute_error" in last
    assert not {"fqe/rank_correlation", "fqe/regret@1"} & last.keys()  # one policy has no rank
    assert (out / "tasks.csv").exists() and (out / "best" / "tasks.csv").exists()


# ---- policies and environments


def test_the_memory_of_a_model_is_carried() -> None:
    class Model:
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Box(-1, 1, (2,))

        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None,
            deterministic: bool = False,
        ) -> Any:  # fmt: skip
            count = 0 if state is None else state[0]
            return np.full((len(observation), 2), count, np.float32), (count + 1,)

    policy = offline.Predictor(Model())
    state, acted = policy.initial_state(3), []
    for _ in range(3):
        action, state = policy.act(torch.zeros(3, 2), state, True)
        acted.append(action[0, 0].item())
    assert acted == [0, 1, 2]


def test_random_contexts_begin_with_the_steps_that_exist() -> None:
    env = envs.make("walker-param", 1, num_tasks=2)
    assert isinstance(env, TaskFamily)
    states = torch.zeros(2, 1, 2, env.single_observation_space.shape[0])  # type: ignore[index]
    data = episodes(states, torch.zeros(2, 1, 1), tasks=env.tasks, family="walker-param")
    config = OfflineConfig("none", context="random", k=2, episodes=1)
    generator = torch.Generator().manual_seed(0)
    (*_, reward, _), mask = offline.draw_contexts(Idle(), data, config, generator, "cpu")
    assert (mask.int().diff(dim=1) <= 0).all()
    assert (mask.sum(1) < 350).all()  # who moves at random falls, twice
    assert (reward[mask] != 0).all()


def test_random_contexts_need_a_time_limit() -> None:
    class Endless(Idle):
        def make_eval_env(self, num_envs: int) -> Any:
            env = envs.make("point-robot", num_envs)
            env.max_episode_steps = sys.maxsize
            return env

    data = episodes(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1))
    for context in ("random", "online"):
        config = OfflineConfig("none", context=context)
        with pytest.raises(ConfigError, match=f"context='{context}': expected an environment"):
            offline.draw_contexts(Endless(), data, config, torch.Generator(), "cpu")

"""Point-robot: rewards by hand, tasks by row, and the returns the literature knows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import envs
from envs.adapt import to_gymnasium
from envs.point import PointRobot


def make(num_envs: int = 1, **arguments: Any) -> PointRobot:
    env = envs.make("point-robot", num_envs, **arguments)
    assert isinstance(env, PointRobot)
    return env


def returns(env: PointRobot, behave) -> torch.Tensor:
    """Returns [N] of one episode of `behave(obs, goal)`."""
    obs, info = env.reset(seed=0)
    total = torch.zeros(env.num_envs)
    for _ in range(env.max_episode_steps):
        obs, reward, terminated, truncated, info = env.step(behave(obs, info["task"]))
        assert not terminated.any()
        total += reward
    assert truncated.all()
    return total


def test_a_step_by_hand() -> None:
    env = make(tasks=[[0.0, 1.0]])
    obs, info = env.reset()
    assert obs.tolist() == [[0, 0]]
    assert info["task"].tolist() == [[0, 1]]
    obs, reward, *_ = env.step(torch.tensor([[1.0, -0.5]]))
    torch.testing.assert_close(obs, torch.tensor([[0.1, -0.05]]))
    assert reward.item() == pytest.approx(-math.hypot(0.1, 1.05))
    obs, reward, *_ = env.step(torch.tensor([[-3.0, 1.0]]))  # clipped to the box
    torch.testing.assert_close(obs, torch.tensor([[0.0, 0.05]]))
    assert reward.item() == pytest.approx(-0.95)


def test_returns_of_the_optimum_and_of_standing_still() -> None:
    theta = np.pi * (np.arange(400) + 0.5) / 400
    env = make(400, tasks=np.stack([np.cos(theta), np.sin(theta)], 1))
    still = returns(env, lambda obs, goal: torch.zeros_like(obs))
    torch.testing.assert_close(still, torch.full((400,), -10.0))
    best = returns(env, lambda obs, goal: ((goal - obs) / 0.1).clamp(-1, 1))
    assert best.mean().item() == pytest.approx(-3.84, abs=0.005)  # computed independently
    assert best.min().item() == pytest.approx(-4.50, abs=0.005)
    assert best.max().item() == pytest.approx(-3.04, abs=0.005)


def test_tasks_depend_on_seed_and_index_alone() -> None:
    few, many = make(3, num_tasks=5), make(12, num_tasks=40)
    assert torch.equal(few.tasks, many.tasks[:5])
    assert not torch.equal(few.tasks, make(3, num_tasks=5, task_seed=1).tasks)
    assert torch.equal(few.tasks, make(3, num_tasks=5, seed=7).tasks)  # another stream
    wide = make(12, num_tasks=5)
    assert wide.task_id.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert torch.equal(wide.parameters, wide.tasks[wide.task_id])
    chosen = make(3, num_tasks=5, task_ids=[4, 0, 4])
    _, info = chosen.reset()
    assert info["task_id"].tolist() == [4, 0, 4]
    info = chosen.step(torch.zeros(3, 2))[-1]
    assert torch.equal(info["task"], few.tasks[[4, 0, 4]])
    assert torch.equal(info["final_info"]["task_id"], info["task_id"])


def test_goals_have_the_published_distribution() -> None:
    goals = make(num_tasks=20_000).tasks
    torch.testing.assert_close(goals.norm(dim=1), torch.ones(20_000))
    angle = torch.atan2(goals[:, 1], goals[:, 0])
    assert angle.min() >= 0
    assert angle.mean().item() == pytest.approx(math.pi / 2, abs=0.03)
    assert angle.std().item() == pytest.approx(math.pi / 12**0.5, abs=0.02)
    square = envs.make("point-robot/square", num_tasks=20_000)
    assert isinstance(square, PointRobot)
    assert square.max_episode_steps == 20
    assert square.tasks.abs().max().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(square.tasks.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    still = 20 * square.tasks.norm(dim=1).mean().item()
    assert still == pytest.approx(20 * (2**0.5 + math.asinh(1)) / 3, abs=0.1)


def test_state_holds_the_tasks() -> None:
    source, target = make(4), make(4, task_seed=3)
    source.reset(seed=0)
    source.step(torch.ones(4, 2))
    target.load_state_dict(source.state_dict())
    action = torch.full((4, 2), 0.3)
    assert torch.equal(source.step(action)[1], target.step(action)[1])


def test_one_row_is_a_gymnasium_environment() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(to_gymnasium(make(tasks=[[0.0, 1.0]])), skip_render_check=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": [[1.0]]}, "tasks: expected shape (K, 2) for goal_x, goal_y; got (1, 1)"),
        ({"tasks": [[1.0, math.nan]]}, "tasks: not finite"),
        ({"task_ids": [40]}, "task_ids: expected 0 .. 39"),
        ({"task_ids": [0, 1]}, "task_ids: expected 1 integers"),
        ({"num_tasks": 0}, "num_tasks=0: expected at least 1"),
        ({"goals": "circle"}, "goals='circle': expected one of semicircle, square"),
    ],
)
def test_bad_arguments(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(").replace(")", r"\)")):
        make(**arguments)

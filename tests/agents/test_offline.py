"""Offline evaluation where data are few, odd or damaged: nothing changes its meaning in silence."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from agents.core import diagnose, offline
from agents.core.config import ConfigError
from envs.data import TaskData


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

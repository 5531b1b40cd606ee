"""Shared by all tests: one torch thread, as the command line uses, and a small SLIM."""

from typing import Any

import pytest
import torch

torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "num_envs": 8,
    "horizon": 10,
    "hidden": [16, 16],
    "epochs": 2,
    "minibatches": 2,
    "discovery_updates": 2,
    "discovery_batch": 32,
    "log_interval": 1,
    "checkpoint_interval": 1,
    "total_timesteps": 400,
    "eval_episodes": 16,
    "env_kwargs": {"horizon": 20, "start": "easy", "num_threads": 1},
}


@pytest.fixture
def small() -> dict[str, Any]:
    """Settings with which SLIM trains in a second."""
    return {**SMALL, "env_kwargs": dict(SMALL["env_kwargs"])}

"""Short versions of the campaigns of benchmarks/trust.py; the full ones commit their table."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from agents import AGENTS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # last: it has an envs.py, too

import trust  # noqa: E402

SHORT = [
    *(
        (campaign, name, count)
        for campaign, count in {
            "kill": 1, "nan": 1, "configs": 60, "checkpoints": 40
        }.items()
        for name in AGENTS
    ),
    ("signals", "masd", 1), ("signals", "acorm", 1), ("disk", "masd", 1),
    ("same", "corro", 1), ("same", "acorm", 1),
    ("datasets", "-", 40), ("workers", "-", 1),
]  # fmt: skip


@pytest.mark.parametrize(("which", "name", "count"), SHORT)
def test_short(which, name, count):
    try:
        trials, problems = trust.campaign(which, name, count)
    except trust.common.Skipped as reason:
        pytest.skip(str(reason))
    assert trials >= count
    assert problems == []


@pytest.mark.parametrize("name", AGENTS)
def test_no_tensor_is_left_behind_by_an_update(name, tmp_path):
    """The soak in short: what an hour would show as growth."""
    agent, alive = trust.make(name, tmp_path, log_interval=6), []

    def count(agent, row):
        gc.collect()
        alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
        return len(alive) < 4

    agent.learn(total_timesteps=10**9, callback=count)
    assert alive[3] <= alive[2]


FULL = [(w, n) for w in trust.CAMPAIGNS for n in (["-"] if w in trust.ONCE else AGENTS)]


@pytest.mark.full
@pytest.mark.parametrize(("which", "name"), FULL)
def test_full(which, name):
    try:
        trials, problems = trust.campaign(which, name, trust.CAMPAIGNS[which][1])
    except trust.common.Skipped as reason:
        pytest.skip(str(reason))
    trust.record(which, name, trials, problems)
    assert problems == []

"""Short versions of the campaigns of benchmarks/trust.py; the full ones commit their table."""

import sys
from pathlib import Path

import pytest

from agents import AGENTS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # last: it has an envs.py, too

import trust  # noqa: E402

SHORT = [
    *(("configs", name, 60) for name in AGENTS),
    ("checkpoints", "masd", 40), ("checkpoints", "corro", 40),
    ("nan", "masd", 1), ("nan", "corro", 1), ("same", "corro", 1),
    ("datasets", "-", 40), ("workers", "-", 1),
]  # fmt: skip


@pytest.mark.parametrize(("which", "name", "count"), SHORT)
def test_short(which, name, count):
    trials, problems = trust.campaign(which, name, count)
    assert trials >= count
    assert problems == []


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

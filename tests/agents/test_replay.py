"""Replay: packing, order, sampling, and refusing what does not fit."""

import pytest
import torch
from trees import assert_same

from agents.core.replay import Replay

FIELDS = {
    "obs": ((3,), torch.float32),
    "image": ((2, 2), torch.uint8),
    "action": ((), torch.int64),
    "reward": ((), torch.float32),
}


def step(t: int, n: int = 4) -> dict[str, torch.Tensor]:
    rows = torch.arange(n)
    return {
        "obs": (100 * t + rows)[:, None].float().expand(-1, 3),
        "image": torch.full((n, 2, 2), t, dtype=torch.uint8),
        "action": 10 * t + rows,
        "reward": t + rows / 10,
    }


def filled(steps: int, capacity: int = 5) -> Replay:
    replay = Replay(FIELDS, capacity, 4)
    for t in range(steps):
        replay.add(**step(t))
    return replay


@pytest.mark.parametrize("steps", [3, 5, 7, 11])
def test_steps_come_oldest_first(steps):
    got = filled(steps).steps()
    times = range(max(0, steps - 5), steps)
    for name in FIELDS:
        expected = torch.stack([step(t)[name] for t in times])
        assert torch.equal(got[name], expected), name
        assert got[name].dtype == FIELDS[name][1]


def test_samples_are_whole_uniform_transitions():
    replay = filled(7)
    batch = replay.sample(20_000, torch.Generator().manual_seed(0))
    t = batch["image"][:, 0, 0].long()
    row = batch["action"] - 10 * t
    assert torch.equal(batch["obs"][:, 0], (100 * t + row).float())
    assert torch.allclose(batch["reward"], t + row / 10)
    counts = torch.bincount((t - 2) * 4 + row, minlength=20)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # 0.999 quantile with 19 degrees of freedom


def test_state_continues_exactly():
    replay, other = filled(7), filled(0)
    other.load_state_dict(replay.state_dict())
    for r in (replay, other):
        r.add(**step(7))
    assert_same(replay.steps(), other.steps())
    assert len(other) == 20


def test_refuses_what_does_not_fit():
    replay = filled(0)
    with pytest.raises(ValueError, match="nothing to sample"):
        replay.sample(1, torch.Generator())
    with pytest.raises(ValueError, match="expected \\['action'"):
        replay.add(obs=torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"field 'reward': expected shape \(4,\), got \(3,\)"):
        replay.add(**{**step(0), "reward": torch.zeros(3)})
    with pytest.raises(ValueError, match="replay rows"):
        replay.load_state_dict(Replay(FIELDS, 5, 3).state_dict())

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
    for wrong in ({"position": "2"}, {"position": 5}, {"full": 0}, {"position": 1}):
        with pytest.raises(ValueError, match="replay"):
            replay.load_state_dict(filled(2).state_dict() | wrong)
    larger = Replay(FIELDS, 8, 4)
    larger.load_state_dict(filled(3).state_dict())
    assert len(larger) == 12
    with pytest.raises(ValueError, match="replay rows"):  # whose order would be lost
        larger.load_state_dict(filled(7).state_dict())


# ---- sequences


@pytest.mark.parametrize("steps", [3, 5, 7, 11])
def test_sequences_are_consecutive_and_never_cross_the_write_position(steps):
    batch = filled(steps).sample_sequences(4_000, 3, torch.Generator().manual_seed(0))
    time = batch["image"][..., 0, 0].long()
    row = batch["action"] - 10 * time
    assert batch["obs"].shape == (4_000, 3, 3)
    assert batch["image"].shape == (4_000, 3, 2, 2)
    assert torch.equal(time, time[:, :1] + torch.arange(3))
    assert (row == row[:, :1]).all()
    assert torch.equal(batch["obs"][..., 0], (100 * time + row).float())
    oldest = max(0, steps - 5)
    starts = min(steps, 5) - 2
    counts = torch.bincount((time[:, 0] - oldest) * 4 + row[:, 0], minlength=4 * starts)
    assert len(counts) == 4 * starts
    expected = 4_000 / (4 * starts)
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # 0.999 quantile, 11 degrees


def test_a_sequence_of_everything_and_none_longer():
    replay = filled(7)
    batch = replay.sample_sequences(8, 5, torch.Generator().manual_seed(0))
    assert (batch["image"][..., 0, 0] == torch.arange(2, 7)).all()
    for length in (0, 6):
        with pytest.raises(ValueError, match=f"length={length}: expected 1 .. 5, the steps stored"):
            replay.sample_sequences(8, length, torch.Generator())


# ---- episodes


def episodic(steps: int, capacity: int = 12) -> tuple[Replay, list[list[tuple[int, int]]]]:
    """Row i ends every 3 + i steps; and the whole episodes (first, last) that are stored of it."""
    fields = {"x": ((2,), torch.float32), "done": ((), torch.bool), "row": ((), torch.int64)}
    replay = Replay(fields, capacity, 3)
    period = 3 + torch.arange(3)
    for t in range(steps):
        replay.add(x=torch.full((3, 2), float(t)), done=(t + 1) % period == 0, row=torch.arange(3))
    oldest = max(0, steps - capacity)
    whole = []
    for p in period.tolist():
        all_of_it = [(first, first + p - 1) for first in range(0, steps, p)]
        # Of a full ring nobody knows what came before the oldest step.
        after = oldest if steps < capacity else oldest + 1
        whole.append([(a, b) for a, b in all_of_it if a >= after and b < steps])
    return replay, whole


@pytest.mark.parametrize("steps", [5, 12, 13, 20, 29])
def test_episodes_are_whole_and_padded(steps):
    replay, whole = episodic(steps)
    batch, mask = replay.sample_episodes(300, torch.Generator().manual_seed(0))
    assert batch["x"].shape[:2] == mask.shape
    lengths = mask.sum(1)
    assert mask.shape[1] == lengths.max()
    seen = set()
    for i in range(300):
        n = int(lengths[i])
        assert mask[i].tolist() == [True] * n + [False] * (mask.shape[1] - n)
        time = batch["x"][i, :n, 0]
        assert torch.equal(time, time[0] + torch.arange(n))
        assert (batch["row"][i, :n] == batch["row"][i, 0]).all()
        assert batch["done"][i, :n].tolist() == [False] * (n - 1) + [True]
        for name in batch:
            assert (batch[name][i, n:] == 0).all()
        seen.add((int(batch["row"][i, 0]), int(time[0]), int(time[-1])))
    assert seen == {(row, a, b) for row in range(3) for a, b in whole[row]}


@pytest.mark.parametrize("steps", [4, 12, 17])
def test_an_episode_that_is_cut_does_not_go_on(steps):
    replay, whole = episodic(steps)
    before = replay.count_episodes()
    replay.end("done", 1)
    going = sum(row[-1:] != [(row[-1][0], steps - 1)] if row else True for row in whole)
    assert replay.count_episodes() - before == going > 0
    replay.end("done", 1)
    replay.add(x=torch.zeros(3, 2), done=torch.ones(3) > 0, row=torch.arange(3))
    _, mask = replay.sample_episodes(200, torch.Generator().manual_seed(0))
    assert mask.sum(1).min() == 1  # what came after alone
    Replay({"done": ((), torch.bool)}, 5, 2).end("done", 1)  # of nothing


def test_episodes_of_one_length_and_what_is_refused():
    replay, _ = episodic(12)
    _, mask = replay.sample_episodes(4, torch.Generator().manual_seed(0), length=7)
    assert mask.shape == (4, 7)
    with pytest.raises(ValueError, match="length=4: an episode has 5 steps"):
        replay.sample_episodes(4, torch.Generator(), length=4)
    with pytest.raises(ValueError, match="expected a field 'x' without axes"):
        replay.sample_episodes(4, torch.Generator(), done="x")
    with pytest.raises(ValueError, match="expected a field 'end' without axes"):
        replay.sample_episodes(4, torch.Generator(), done="end")
    with pytest.raises(ValueError, match="no whole episode"):
        episodic(2)[0].sample_episodes(4, torch.Generator())


# ---- memory-mapped


def mapped(path, slack: int | None = 3) -> Replay:
    return Replay(FIELDS, 5, 4, path=path, slack=slack)


def test_a_file_holds_what_memory_would(tmp_path):
    memory, file = filled(0), mapped(tmp_path / "rows")
    for t in range(14):
        for replay in (memory, file):
            replay.add(**step(t))
        assert_same(memory.steps(), file.steps())
        assert len(memory) == len(file)
        batch = file.sample(200, torch.Generator().manual_seed(t))
        assert set(batch["image"][:, 0, 0].tolist()) == set(range(max(0, t - 4), t + 1))
        assert torch.equal(batch["obs"][:, 0], 90.0 * batch["image"][:, 0, 0] + batch["action"])
        if t >= 2:
            windows = file.sample_sequences(50, 3, torch.Generator().manual_seed(t))
            time = windows["image"][..., 0, 0].long()
            assert torch.equal(time, time[:, :1] + torch.arange(3))
            assert max(0, t - 4) <= time.min() <= time.max() <= t


def test_a_run_resumes_from_its_file_exactly(tmp_path):
    """Steps written after the checkpoint, by a run that was killed, change nothing."""
    path = tmp_path / "rows"
    first = mapped(path)
    for t in range(17):
        first.add(**step(t))
    state = first.state_dict()
    assert state.keys() == {"position", "full", "id", "written"}  # and no rows
    kept = {name: value.clone() for name, value in first.steps().items()}
    for t in range(17, 20):
        first.add(**step(100 + t))
    del first  # as if killed
    second = mapped(path)
    second.load_state_dict(state)
    assert_same(second.steps(), kept)
    for t in range(17, 20):
        second.add(**step(t))
    assert second.steps()["image"][:, 0, 0, 0].tolist() == [15, 16, 17, 18, 19]
    second.load_state_dict(state)  # three steps back, once more
    second.add(**step(50))
    for t in range(3):
        second.add(**step(t))
    with pytest.raises(
        ValueError, match="4 steps were written since that checkpoint, more than sl"
    ):
        mapped(path).load_state_dict(state)


def test_a_file_that_is_not_full_resumes_from_any_checkpoint(tmp_path):
    replay = mapped(tmp_path / "rows")
    states = []
    for t in range(8):
        states.append(replay.state_dict())
        replay.add(**step(t))
    for wrong in ({"written": 9}, {"written": "7"}, {"written": 6}):
        with pytest.raises(ValueError, match="replay file"):
            mapped(tmp_path / "rows").load_state_dict(states[7] | wrong)
    for t, state in enumerate(states[:6]):
        other = mapped(tmp_path / "rows")
        other.load_state_dict(state)
        assert other.steps()["image"][:, 0, 0, 0].tolist() == list(range(max(0, t - 5), t))


def test_a_new_run_begins_the_file_anew(tmp_path):
    path = tmp_path / "rows"
    old = mapped(path)
    old.add(**step(0))
    state = old.state_dict()
    new = mapped(path)
    new.add(**step(7))
    assert new.steps()["image"][:, 0, 0, 0].tolist() == [7]
    with pytest.raises(ValueError, match="written anew since that checkpoint"):
        mapped(path).load_state_dict(state)
    new.clear()
    assert len(new) == 0
    with pytest.raises(ValueError, match="written anew"):
        new.load_state_dict(filled(3).state_dict())


def test_open_reads_what_was_written(tmp_path):
    path = tmp_path / "rows"
    replay = mapped(path)
    for t in range(11):
        replay.add(**step(t))
    other = Replay.open(path)
    assert_same(other.steps(), replay.steps())
    other.add(**step(11))
    assert Replay.open(path).steps()["image"][:, 0, 0, 0].tolist() == [7, 8, 9, 10, 11]


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "rows"
    mapped(path).add(**step(0))
    with pytest.raises(ValueError, match="a replay with capacity=5, expected 6"):
        Replay(FIELDS, 6, 4, path=path, slack=2)
    with pytest.raises(ValueError, match=r"a replay with fields=.*, expected"):
        Replay({"obs": ((3,), torch.float32)}, 5, 4, path=path, slack=3)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 64)
    with pytest.raises(ValueError, match=f"{size - 64} bytes, expected {size}"):
        mapped(path)
    for content in (b"", b"text", b"{}", b"[1]", b'{"fields": {"a": [[], "load"]}}'):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ValueError, match="other: not the file of a replay"):
            mapped(tmp_path / "other")
    with pytest.raises(ValueError, match="no such file"):
        Replay.open(tmp_path / "none")
    with pytest.raises(ValueError, match="slack=3: expected at least 0 steps, and a path"):
        Replay(FIELDS, 5, 4, slack=3)


def test_a_file_larger_than_what_is_written_takes_no_space(tmp_path):
    big = Replay({"x": ((1000,), torch.float32)}, 10**6, 4, path=tmp_path / "rows")
    big.add(x=torch.ones(4, 1000))
    stat = (tmp_path / "rows").stat()
    assert stat.st_size > 16e9
    assert stat.st_blocks * 512 < 1e7
    assert big.sample(8, torch.Generator())["x"].sum() == 8_000

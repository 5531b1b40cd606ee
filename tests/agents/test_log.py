"""Metrics: the CSV of an interrupted run, means, and the guard against NaN."""

import math

import pytest
import torch

from agents.core.log import FiniteGuard, Mean, MetricsFile, NonFiniteError, read_metrics


def test_resume_drops_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, last_step=-1)
    for step in (10, 20, 30):
        file.write({"timesteps": step, "loss": step / 7})
    whole = path.read_bytes()
    resumed = MetricsFile(path, last_step=20)
    assert read_metrics(path)["timesteps"] == [10, 20]
    resumed.write({"timesteps": 30, "loss": 30 / 7})
    assert path.read_bytes() == whole


def test_row_cut_short_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, last_step=-1)
    file.write({"timesteps": 10, "a": 1.0, "b": 2.0})
    with path.open("a") as raw:
        raw.write("20,0.")
    MetricsFile(path, last_step=20)
    assert read_metrics(path)["timesteps"] == [10]


def test_columns_may_appear_later(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, last_step=-1)
    file.write({"timesteps": 10, "a": 1.0})
    file.write({"timesteps": 20, "a": 2.0, "eval": 5.0})
    file.write({"timesteps": 30, "a": 3.0})
    metrics = read_metrics(path)
    assert metrics["a"] == [1, 2, 3]
    assert metrics["eval"][1] == 5
    assert math.isnan(metrics["eval"][0])
    assert math.isnan(metrics["eval"][2])


def test_nothing_survives_when_the_checkpoint_is_older_than_all_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsFile(path, last_step=-1).write({"timesteps": 10, "a": 1.0})
    file = MetricsFile(path, last_step=5)
    file.write({"timesteps": 10, "b": 1.0})
    assert list(read_metrics(path)) == ["timesteps", "b"]


def test_mean_counts_each_metric_on_its_own():
    mean = Mean()
    mean.add({"a": torch.tensor(1.0)})
    mean.add({"a": torch.tensor(3.0), "b": torch.tensor(5)})
    other = Mean()
    other.load_state_dict(mean.state_dict())
    assert mean.pop() == other.pop() == {"a": 2.0, "b": 5.0}
    assert mean.pop() == {}


def test_guard_names_the_first_source_and_the_environment():
    guard = FiniteGuard()
    guard.watch("observation", torch.zeros(4, 3))
    guard.watch("loss", torch.tensor(float("nan")))
    bad = torch.zeros(4, 3)
    bad[2, 1] = -math.inf
    guard.watch("observation", bad)
    guard.watch("observation", torch.zeros(4, 3))  # what came later must not hide it
    with pytest.raises(NonFiniteError, match=r"^observation: NaN or infinity in environment 2"):
        guard.check()
    fine = FiniteGuard()
    fine.watch("loss", torch.tensor(1.0))
    fine.check()

"""The benchmark's distributions have the information they claim; what it relies on is exact."""

import math

import numpy as np
import pytest
import torch

from benchmarks.mi import Ledger
from benchmarks.mi_tasks import TASKS, entropy_of_sum, spiral, to_mixture, with_noise
from mi import functional
from mi.critics import CanonicalCritic
from mi.estimators.knn import _kth_smallest, knn
from mi.estimators.measures import MUTUAL


def test_forty_tasks_with_the_published_information():
    assert len(TASKS) == 40
    assert sum(not t.elliptical for t in TASKS.values()) == 9
    for name, truth in {  # printed by bmi 0.1.3
        "1v1-normal": 0.41334, "1v1-additive-0.1": 1.70944, "1v1-additive-0.75": 0.33333,
        "student-1-1-1": 0.22417, "student-5-5-2": 0.44815, "dense-50-50": 1.62427,
        "spiral-normal-cdf-2-pair-25-25": 1.02165, "asinh-student-2-2-1": 0.43195,
    }.items():  # fmt: skip
        assert TASKS[name].truth == pytest.approx(truth, abs=1e-5)


def test_samples_repeat_and_maps_are_what_they_say():
    task = TASKS["spiral-2-pair-3-3"]
    x, y = task.draw(50, 3)
    assert (x == task.draw(50, 3)[0]).all() and not (x == task.draw(50, 4)[0]).any()
    assert x.shape == y.shape == (50, 3)
    turn = spiral(0, 1, lambda square: square)
    point = np.array([[math.sqrt(math.pi / 2), 0.0, 0.0]])  # a quarter turn
    assert turn(point)[0] == pytest.approx([0, math.sqrt(math.pi / 2), 0], abs=1e-9)
    normal = np.random.default_rng(0).standard_normal((20_000, 1))
    mixed = to_mixture(0.3, 0, 5)(normal)
    assert (mixed < 2.5).mean() == pytest.approx(0.3, abs=0.015)


def test_truth_by_quadrature():
    """A linear channel, whose information is known."""
    grid = np.linspace(-8, 8, 2001)
    assert entropy_of_sum(grid, 0.5, np.exp(-(grid**2) / 2)) == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e * 1.25), abs=1e-4
    )
    assert with_noise(lambda x: x, 0.5)[1] == pytest.approx(0.5 * math.log(5), abs=1e-4)


def test_kth_smallest_is_that_of_a_full_sort():
    generator = torch.Generator().manual_seed(0)
    for columns in (30, 1013):
        values = torch.randn(7, columns, generator=generator).round(decimals=1)  # ties
        for k in (1, 4, 8):
            assert torch.equal(_kth_smallest(values, k), values.sort(1).values[:, k - 1 : k])


def test_neighbours_beside_outliers():
    """Squares of numbers in the thousands must not swallow the distances between the others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 3)) * 1e-3
    y = x + 1e-3 * rng.standard_normal((1500, 3))
    near = knn([x, y], MUTUAL, 3).value
    x[0], y[0] = 3e3, 3e3
    assert knn([x, y], MUTUAL, 3).value == pytest.approx(near, abs=0.02)


def test_plain_infonce_is_the_general_one():
    scores = 3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    general = functional.infonce(scores, positives=torch.eye(6, dtype=torch.bool))
    assert functional.infonce(scores).item() == pytest.approx(general.item(), abs=1e-6)
    terms = functional.infonce(scores, reduction="none")
    assert terms.shape == (6,) and terms.mean().item() == pytest.approx(general.item(), abs=1e-6)


def test_canonical_variates_come_first():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, generator=generator)
    y = torch.randn(4000, 3, generator=generator)
    y[:, 2] += 2 * x[:, 4]
    critic = CanonicalCritic(x, y, hidden=8)
    features, _ = critic._features(x, y)
    assert features.shape == (4000, 6)
    assert abs(np.corrcoef(features[:, 0], x[:, 4])[0, 1]) > 0.98
    assert features[:, 0].std() > 3 * features[:, 1].std()
    assert torch.allclose(critic.pairwise(x[:4], y[:4]).diagonal(), critic(x[:4], y[:4]))


def test_a_ledger_adds_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.mi.RESULTS", tmp_path)
    ledger = Ledger("a", ("task", "nats"), ("value",))
    assert ledger.missing("t", 10.0)
    ledger.add(task="t", nats=10.0, value=0.5)
    ledger.add(task="t", nats=10.0, value=0.7)
    assert not Ledger("a", ("task", "nats"), ("value",)).missing("t", 10.0)
    assert (tmp_path / "a.csv").read_text() == "task,nats,value\nt,10,0.5\n"

"""Estimators that measure, on distributions whose information is known."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.nn import functional

import mi


def mixture(samples: int, classes: int = 4, distance: float = 2.0, seed: int = 0):
    """Labels and x = distance · label + N(0, 1), and their information by quadrature."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (samples,), generator=generator)
    x = distance * label + torch.randn(samples, generator=generator)

    def negative_entropy(value):
        p = sum(stats.norm.pdf(value, distance * c) for c in range(classes)) / classes
        return p * math.log(p) if p > 0 else 0.0

    total = -integrate.quad(negative_entropy, -8, distance * classes + 8, limit=200)[0]
    return x[:, None], label, total - 0.5 * math.log(2 * math.pi * math.e)


@pytest.mark.parametrize("distance", [1.0, 4.0])
def test_both_estimators_find_the_information_of_a_mixture(distance):
    x, label, truth = mixture(4000, distance=distance)
    skill = functional.one_hot(label, 4).float()
    decoded = mi.decode(x, skill, steps=150)
    assert decoded.nats == pytest.approx(truth, abs=0.05)
    assert mi.discrete_continuous(x, label) == pytest.approx(truth, abs=0.05)
    assert decoded.accuracy > 1 / 4


def test_nothing_to_find_is_nothing():
    _, label, _ = mixture(2000)
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(5))
    decoded = mi.decode(x, functional.one_hot(label, 4).float(), steps=150)
    assert decoded.nats < 0.01  # held out: a decoder that learnt the samples by heart loses here
    assert abs(mi.discrete_continuous(x, label)) < 0.03


def test_continuous_skills_are_decoded():
    generator = torch.Generator().manual_seed(0)
    skill = functional.normalize(torch.randn(2000, 2, generator=generator), dim=-1)
    noise = torch.randn(2000, 2, generator=generator)
    near, far = (mi.decode(skill + s * noise, skill, discrete=False).nats for s in (0.2, 1.0))
    assert near > far + 0.5
    assert far > 0.1
    assert math.isnan(mi.decode(skill, skill, discrete=False, steps=5).accuracy)


def test_decode_leaves_the_global_generator_alone_and_repeats():
    x, label, _ = mixture(200)
    skill = functional.one_hot(label, 4).float()
    before = torch.get_rng_state()
    first, second = (mi.decode(x, skill, steps=20) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 10 samples"):
        mi.decode(torch.zeros(6, 1), torch.zeros(6, 2))
    with pytest.raises(ValueError, match=r"expected \[E, D\] and \[E\]"):
        mi.discrete_continuous(torch.zeros(6, 1), torch.zeros(5))


def test_knn_leaves_out_labels_that_occur_once():
    x, label, _ = mixture(500)
    more, single = torch.cat([x, x[:1] + 100]), torch.cat([label, torch.tensor([9])])
    assert math.isfinite(mi.discrete_continuous(more, single))


def test_knn_with_atoms():
    """Half of the samples stick to a wall: there the labels' shares decide."""
    x, label, _ = mixture(4000, classes=2, distance=4.0)
    x = x.clamp(max=2.0).repeat(1, 2)  # almost all of label 1 is at the wall
    skill = functional.one_hot(label, 2).float()
    value = mi.discrete_continuous(x, label)
    assert value == pytest.approx(mi.decode(x, skill, steps=150).nats, abs=0.05)
    stuck = torch.zeros(4000, 2)
    assert mi.discrete_continuous(stuck, label) == pytest.approx(0, abs=0.01)

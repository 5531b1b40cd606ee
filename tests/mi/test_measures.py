"""Sample estimators of every measure, on distributions whose information is known."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from mi.channels import binary_entropy, channel_capacity, gaussian_capacity, water_filling
from mi.estimators import gaussian as g
from mi.estimators.discrete import discrete, entropy
from mi.estimators.knn import knn, ksg2, ross
from mi.estimators.measures import CONDITIONAL, MUTUAL, total

RNG = np.random.default_rng
CHAIN = np.array([[1, 0.6, 0.3], [0.6, 1, 0.5], [0.3, 0.5, 1]])


def entropy_of(subset):
    index = [i for i in subset]
    return 0.5 * np.linalg.slogdet(2 * math.pi * math.e * CHAIN[np.ix_(index, index)])[1]


def truth(measure):
    return sum(sign * entropy_of(subset) for subset, sign in measure.items())


@pytest.mark.parametrize("measure", [MUTUAL, CONDITIONAL, total(3)])
@pytest.mark.parametrize("estimator", ["gaussian", "gaussian_copula", "student_copula", "knn"])
def test_every_measure_of_gaussian_triples(measure, estimator):
    x = RNG(0).multivariate_normal(np.zeros(3), CHAIN, 4000)
    if estimator.endswith("copula"):
        x = np.exp(x)  # monotone maps of the coordinates change nothing
    variables = max(map(max, measure)) + 1
    blocks = [x[:, [i]] for i in range(variables)]
    found = {"knn": knn}.get(estimator, getattr(g, estimator, None))(blocks, measure)
    assert found.value == pytest.approx(truth(measure), abs=0.04)
    assert found.pointwise.mean() == pytest.approx(found.value, abs=0.02)
    assert 0.002 < found.stderr < 0.03


def brute_force(x, y, k):
    dx = np.abs(x[:, None] - x).max(-1)
    dy = np.abs(y[:, None] - y).max(-1)
    joint = np.maximum(dx, dy)
    np.fill_diagonal(joint, -1)
    radius = np.sort(joint, 1)[:, k, None]
    digamma = special.digamma
    return (
        digamma(k) + digamma(len(x)) - digamma((dx < radius).sum(1)) - digamma((dy < radius).sum(1))
    )


@pytest.mark.parametrize("d", [1, 2, 4])
def test_ksg_is_ksg_to_the_last_bit_in_trees_and_matrices(d):
    x, noise = RNG(d).standard_normal((2, 300, d)) * 1e-3 + 5
    y = x + noise
    expected = brute_force(x, y, 3)
    found = knn([x, y], MUTUAL, 3, "chebyshev")
    if d < 4:
        np.testing.assert_array_equal(found.pointwise, expected)
    else:  # single precision from many dimensions on
        assert found.value == pytest.approx(expected.mean(), abs=1e-3)


def test_euclidean_blocks_lose_less_to_dimension():
    x, noise = RNG(0).standard_normal((2, 2000, 5))
    y = 0.5 * x + math.sqrt(0.75) * noise
    exact = -2.5 * math.log(0.75)
    square, ball = (knn([x, y], MUTUAL, 3, m).value for m in ("chebyshev", "euclidean"))
    assert square < ball < exact


def test_ksg2():
    x = RNG(0).multivariate_normal(np.zeros(3), CHAIN, 4000)
    found, other = ksg2(x[:, :1], x[:, 1:2], 5), knn([x[:, :1], x[:, 1:2]], MUTUAL, 5)
    assert found.value == pytest.approx(truth(MUTUAL), abs=0.06)
    assert found.value == pytest.approx(other.value, abs=0.02)


def test_ties_and_mixtures():
    """Half of the pairs are equal coins, half are correlated reals: Gao et al.'s experiment."""
    rng, n = RNG(0), 4000
    coin = rng.integers(2, size=n).astype(float)
    other = np.where(rng.random(n) < 0.9, coin, 1 - coin)
    reals = rng.multivariate_normal([5, 5], [[1, 0.9], [0.9, 1]], n)
    pick = rng.random(n) < 0.5
    x, y = np.where(pick, coin, reals[:, 0]), np.where(pick, other, reals[:, 1])
    within = 0.5 * (math.log(2) - binary_entropy(0.1)) - 0.25 * math.log(1 - 0.81)
    found = knn([x[:, None], y[:, None]], MUTUAL)
    assert found.value == pytest.approx(within + math.log(2), abs=0.05)
    both = knn([coin[:, None], other[:, None]], MUTUAL).value
    assert both == pytest.approx(math.log(2) - binary_entropy(0.1), abs=0.02)


def test_ross_has_pointwise_terms():
    rng = RNG(0)
    label = rng.integers(2, size=2000)
    found = ross(label[:, None] * 8 + rng.standard_normal((2000, 1)), label)
    assert found.value == pytest.approx(math.log(2), abs=0.02)
    assert found.pointwise.mean() == pytest.approx(found.value)


@pytest.mark.parametrize(("dof", "d"), [(1.0, 1), (3.0, 2)])
def test_student_copula_is_exact_where_correlation_sees_nothing(dof, d):
    rng = RNG(0)
    z = rng.standard_normal((6000, 2 * d)) / np.sqrt(rng.chisquare(dof, (6000, 1)) / dof)

    def term(v):
        return special.gammaln(v / 2) - v / 2 * special.digamma(v / 2)

    exact = term(dof) + term(dof + 2 * d) - 2 * term(dof + d)
    found = g.student_copula([z[:, :d], z[:, d:]], MUTUAL)
    assert found.value == pytest.approx(exact, abs=0.035)
    assert abs(g.gaussian_copula([z[:, :d], z[:, d:]], MUTUAL).value) < 0.01
    assert g.fit_copula(z).dof == pytest.approx(dof, rel=0.15)
    assert math.isinf(g.fit_copula(rng.standard_normal((2000, 3))).dof)


def test_the_bias_of_many_dimensions_is_removed():
    values = [g.gaussian(list(RNG(s).standard_normal((2, 400, 12))), MUTUAL) for s in range(12)]
    mean = np.mean([v.value for v in values])
    spread = np.std([v.value for v in values])
    assert abs(mean) < 3 * spread / math.sqrt(12)  # without the correction: 144 / 800 = 0.18
    assert values[0].floor == pytest.approx(spread, rel=0.6)


def test_gaussian_mi_is_differentiable_and_indifferent_to_linear_maps():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 500, 2, generator=generator, dtype=torch.float64)
    y = (x + y).requires_grad_()
    value = g.gaussian_mi(x, y)
    assert value.item() == pytest.approx(
        g.gaussian([x.numpy(), y.detach().numpy()], MUTUAL).value, abs=1e-6
    )
    turned = g.gaussian_mi(x @ torch.tensor([[2.0, 1.0], [0.0, -3.0]]).double(), y)
    assert turned.item() == pytest.approx(value.item(), abs=1e-6)
    value.backward()
    assert y.grad is not None and torch.isfinite(y.grad).all()
    with pytest.raises(ValueError, match="more than 5 samples"):
        g.gaussian_mi(x[:4], y[:4])


def test_corrections_of_counts():
    rng = RNG(1)
    errors = {c: [] for c in ("plugin", "miller_madow", "grassberger", "chao_shen", "nsb")}
    for _ in range(6):
        p = rng.dirichlet(np.ones(400)).reshape(20, 20)
        exact = (p * np.log(p / p.sum(1, keepdims=True) / p.sum(0))).sum()
        cell = rng.choice(400, 500, p=p.ravel())
        for name, found in errors.items():
            found.append(discrete([cell // 20, cell % 20], MUTUAL, name).value - exact)
    size = {name: np.abs(e).mean() for name, e in errors.items()}
    assert size["miller_madow"] < 0.6 * size["plugin"]
    assert size["chao_shen"] < 0.35 * size["plugin"]
    assert size["nsb"] < 0.35 * size["plugin"]
    assert size["grassberger"] < size["miller_madow"]


def test_entropies_of_known_counts():
    assert entropy(np.array([5, 5]), "plugin") == pytest.approx(math.log(2))
    assert entropy(np.array([5, 5, 0]), "miller_madow") == pytest.approx(math.log(2) + 1 / 20)
    uniform = np.full(8, 10_000)
    for name in ("grassberger", "chao_shen", "nsb"):
        assert entropy(uniform, name) == pytest.approx(math.log(8), abs=1e-3)
        assert math.isfinite(entropy(np.ones(5), name, 10))
    for name in ("plugin", "miller_madow", "chao_shen"):
        assert entropy(np.array([7]), name) == pytest.approx(0, abs=1e-9)


def test_exclusive_or():
    rng = RNG(0)
    x, y = rng.integers(2, size=(2, 3000))
    blocks = [x, y, x ^ y]
    assert discrete(blocks[:2], MUTUAL).value == pytest.approx(0, abs=0.002)
    assert discrete(blocks, CONDITIONAL).value == pytest.approx(math.log(2), abs=0.002)
    assert discrete(blocks, total(3)).value == pytest.approx(math.log(2), abs=0.002)


@pytest.mark.parametrize(
    ("channel", "exact"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], math.log(2) - binary_entropy(0.1)),
        ([[0.8, 0.2, 0], [0, 0.2, 0.8]], 0.8 * math.log(2)),
        ([[1, 0], [0.5, 0.5]], math.log(1.25)),
        (np.eye(7).tolist(), math.log(7)),
        (((np.eye(6) + np.roll(np.eye(6), 1, 1)) / 2).tolist(), math.log(3)),
        ([[0.3, 0.7], [0.3, 0.7]], 0.0),
        # The third input is a mixture of the others: worthless, and slow to be ruled out.
        ([[1, 0], [0, 1], [0.5, 0.5]], math.log(2)),
    ],
)
def test_capacities_with_a_certificate(channel, exact):
    found = channel_capacity(torch.tensor(channel, dtype=torch.float64))
    assert found.gap <= 1e-9
    assert found.value <= exact + 1e-12
    assert found.value == pytest.approx(exact, abs=2e-9)
    assert found.input.sum().item() == pytest.approx(1)


def test_capacity_refuses_what_is_no_channel():
    with pytest.raises(ValueError, match="rows must sum to 1"):
        channel_capacity(torch.tensor([[0.5, 0.4], [0.5, 0.5]]))
    with pytest.raises(ValueError, match="probabilities"):
        channel_capacity(torch.tensor([[1.5, -0.5]]))


def test_water_filling():
    gains = torch.tensor([1.0, 0.5, 0.01, 0.0])
    found = water_filling(gains, 3.0)
    assert found.input.sum().item() == pytest.approx(3)
    assert found.input.tolist() == pytest.approx([2, 1, 0, 0])
    assert found.value == pytest.approx(0.5 * (math.log(3) + math.log(1.5)))
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    noise = torch.diag(torch.tensor([4.0, 2.0])).double()
    assert gaussian_capacity(matrix, noise, 3.0).value == pytest.approx(found.value)
    assert gaussian_capacity(matrix, 1.0, 0.0).value == 0

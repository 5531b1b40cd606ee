"""Critics, decoders and learnt estimators."""

import math

import pytest
import torch

from mi import critics as c
from mi import neural as n

RHO = 0.8
TRUTH = -0.5 * math.log(1 - RHO**2)


def gaussian(samples, seed=0, d=1):
    generator = torch.Generator().manual_seed(seed)
    x, e = torch.randn(2, samples, d, generator=generator)
    return x, RHO * x + math.sqrt(1 - RHO**2) * e


class Exact(c.Decoder):
    """Log p(y|x)/p(y) plus a shift, or log p(y|x)."""

    def __init__(self, shift=0.0, density=False):
        super().__init__()
        self.shift, self.density = shift, density

    def forward(self, x, y):
        v = 1 - RHO**2
        log_p = -0.5 * (y - RHO * x) ** 2 / v - 0.5 * math.log(2 * math.pi * v)
        marginal = 0 if self.density else -0.5 * y**2 - 0.5 * math.log(2 * math.pi)
        return (log_p - marginal)[..., 0] + self.shift

    def pairwise(self, x, y):
        return self(x[:, None], y)


class Marginal(c.Decoder):
    def forward(self, x, y):
        return (-0.5 * y**2 - 0.5 * math.log(2 * math.pi))[..., 0]


class Negative(c.Critic):
    def forward(self, x, y):
        return -Exact()(x, y)


ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
EXACT = {
    "InfoNCE": (n.InfoNCE(Exact()), TRUTH),
    "DV": (n.DonskerVaradhan(Exact()), TRUTH),
    "MINE": (n.MINE(Exact()), TRUTH),
    "NWJ": (n.NWJ(Exact(1.0)), TRUTH),
    "TUBA": (n.TUBA(Exact()), TRUTH),
    "I_alpha": (n.InterpolatedBound(Exact(), 0.5), TRUTH),
    "JSD": (n.JSD(Exact()), TRUTH),
    "SMILE": (n.SMILE(Exact(), 10.0), TRUTH),
    "FDIME": (n.FDIME(Exact()), TRUTH),
    "FLO": (n.FLO(Exact(), Negative()), TRUTH),
    "CLUB": (n.CLUB(Exact(density=True)), RHO**2 / (1 - RHO**2)),
    "L1Out": (n.L1Out(Exact(density=True)), TRUTH),
    "BA": (n.BarberAgakov(Exact(density=True), ENTROPY), TRUTH),
    "DoE": (n.DoE(Exact(density=True), Marginal()), TRUTH),
}


@pytest.mark.parametrize("name", list(EXACT))
def test_the_exact_critic_gives_the_information(name):
    estimator, truth = EXACT[name]
    x, y = gaussian(6000, 1)
    found = estimator.estimate(x, y, candidates=500)
    assert found.value == pytest.approx(truth, abs=0.25 if name == "CLUB" else 0.06)
    assert found.kind == estimator.kind
    assert not found.warnings
    reward = estimator.pointwise(x[:100], y[:100])
    assert reward.shape == (100,)
    assert not reward.requires_grad
    assert estimator.formula and estimator.reference


def make(name):
    def critic():
        return c.ConcatCritic(1, 1, 32)

    def decoder():
        return c.GaussianDecoder(1, 1, 32)

    return {
        "InfoNCE": lambda: n.InfoNCE(c.SeparableCritic(1, 1, 32, 8)),
        "DV": lambda: n.DonskerVaradhan(critic()),
        "MINE": lambda: n.MINE(critic()),
        "NWJ": lambda: n.NWJ(critic()),
        "TUBA": lambda: n.TUBA(critic()),
        "I_alpha": lambda: n.InterpolatedBound(critic(), 0.2),
        "JSD": lambda: n.JSD(critic()),
        "SMILE": lambda: n.SMILE(critic()),
        "FDIME": lambda: n.FDIME(critic()),
        "FLO": lambda: n.FLO(critic(), critic()),
        "CLUB": lambda: n.CLUB(decoder()),
        "L1Out": lambda: n.L1Out(decoder()),
        "BA": lambda: n.BarberAgakov(decoder(), ENTROPY),
        "DoE": lambda: n.DoE(decoder(), c.MixtureDecoder(1, 1, 2, 32)),
    }[name]()


@pytest.mark.parametrize("name", list(EXACT))
def test_training_finds_the_information_of_held_out_data(name):
    torch.manual_seed(0)
    estimator, (x, y) = make(name), gaussian(1500)
    before = torch.get_rng_state()
    report = estimator.fit(x, y, steps=200, batch_size=64, lr=4e-3)
    assert torch.equal(before, torch.get_rng_state())
    assert 0 < report.best_step <= report.steps <= 200
    truth = EXACT[name][1]
    found = estimator.estimate(*gaussian(3000, 1), candidates=200)
    assert found.value == pytest.approx(truth, abs=0.5 if name == "CLUB" else 0.12)
    assert not found.warnings
    if estimator.kind == "lower":
        assert found.value <= truth + 3 * found.stderr
    assert any("fitted to" in w for w in estimator.estimate(x, y, 200).warnings)


def test_saturation_names_the_candidates_that_are_needed():
    x, y = gaussian(64, d=1)
    sharp = n.InfoNCE(Steep())
    found = sharp.estimate(x, x, candidates=16)
    assert found.value <= math.log(16) + 1e-6
    assert any("saturated" in w and "K = " in w for w in found.warnings)
    assert not n.InfoNCE(Exact()).estimate(x, y).warnings


class Steep(c.Critic):
    def pairwise(self, x, y):
        return -1e4 * (x - y.T) ** 2


def test_bounds_cannot_be_pushed_the_wrong_way_by_accident():
    x, y = gaussian(20)
    club, nce, jsd = n.CLUB(Exact(density=True)), n.InfoNCE(Exact()), n.JSD(Exact())
    with pytest.raises(ValueError, match="CLUB: maximising an upper bound"):
        club.bound(x, y)
    with pytest.raises(ValueError, match="InfoNCE: minimising a lower bound"):
        nce.bound(x, y, minimize=True)
    assert torch.equal(club.bound(x, y, minimize=True), club.bound(x, y, allow=True))
    nce.bound(x, y), jsd.bound(x, y), jsd.bound(x, y, minimize=True)


def test_club_says_when_q_has_learnt_nothing():
    torch.manual_seed(0)
    x, y = gaussian(200)
    untrained = n.CLUB(c.GaussianDecoder(1, 1))
    with torch.no_grad():
        for p in untrained.critic.network[0].parameters():
            p.zero_()
    found = untrained.estimate(x, y)
    assert found.diagnostics["gain"] == pytest.approx(0, abs=1e-4)
    assert any("has not learnt" in w for w in found.warnings)
    assert n.CLUB(Exact(density=True)).estimate(x, y).diagnostics["gain"] > 0.3
    with pytest.raises(TypeError, match="expected a Decoder"):
        n.CLUB(c.ConcatCritic(1, 1))  # type: ignore[arg-type]


def test_explicit_negatives_and_gradients_for_encoders():
    torch.manual_seed(0)
    x, y = gaussian(12)
    own, shared = torch.randn(12, 5, 1), torch.randn(5, 1)
    for estimator in (n.InfoNCE(Exact()), n.NWJ(c.ConcatCritic(1, 1, 8)), n.SMILE(Exact())):
        value = estimator.bound(x, y, negatives=shared.expand(12, 5, 1))
        torch.testing.assert_close(value, estimator.bound(x, y, negatives=shared))
        assert not torch.equal(value, estimator.bound(x, y, negatives=own))
        z = x.clone().requires_grad_()
        estimator.bound(z, y, negatives=own).backward()
        assert z.grad is not None and z.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="needs no negatives"):
        n.BarberAgakov(Exact(density=True), 0.0).loss(x, y, negatives=own)


def test_masked_rows_do_not_count():
    x, y = gaussian(12)
    keep = torch.arange(12) < 7
    estimator = n.SMILE(Exact())
    masked = estimator.loss(x, y, mask=keep, key_mask=keep)
    torch.testing.assert_close(masked, estimator.loss(x[:7], y[:7]))


@pytest.mark.parametrize(
    "critic",
    [
        *(c.SeparableCritic(3, 2, 8, 4, s, 0.5) for s in ("dot", "cosine", "neg_l2")),
        c.BilinearCritic(3, 2),
        c.ConcatCritic(3, 2, 8),
        c.ConcatCritic(3, 2, 8, layers=1),
        c.EnsembleCritic([c.BilinearCritic(3, 2), c.ConcatCritic(3, 2, 8)]),
        c.ResidualCritic(c.BilinearCritic(3, 2), c.ConcatCritic(3, 2, 8)),
        c.GaussianDecoder(3, 2, 8),
        c.MixtureDecoder(3, 2, 3, 8),
        c.BernoulliDecoder(3, 2, 8),
    ],
    ids=lambda v: type(v).__name__,
)
def test_all_combinations_equal_pair_after_pair(critic):
    torch.manual_seed(0)
    x, y = torch.randn(5, 3), torch.rand(4, 2).round()
    pairs = torch.stack([critic(x, y[j].expand(5, 2)) for j in range(4)], 1)
    torch.testing.assert_close(critic.pairwise(x, y), pairs, atol=1e-5, rtol=1e-5)
    batch = critic.pairwise(x.expand(2, 5, 3), y.expand(2, 4, 2))
    torch.testing.assert_close(batch[1], pairs, atol=1e-5, rtol=1e-5)


def test_class_decoder():
    decoder, x, y = c.CategoricalDecoder(3, 4, 8), torch.randn(5, 3), torch.tensor([0, 3, 1])
    pairs = torch.stack([decoder(x, y[j].expand(5)) for j in range(3)], 1)
    torch.testing.assert_close(decoder.pairwise(x, y), pairs)
    every = decoder.pairwise(x, torch.arange(4)).exp().sum(1)
    torch.testing.assert_close(every, torch.ones(5))


@pytest.mark.parametrize("decoder", [c.GaussianDecoder(2, 1, 8), c.MixtureDecoder(2, 1, 3, 8)])
def test_densities_integrate_to_one(decoder):
    torch.manual_seed(0)
    y = torch.linspace(-40, 40, 20001)[:, None]
    density = decoder.pairwise(torch.randn(3, 2), y).exp()
    assert torch.trapezoid(density, y[:, 0]).tolist() == pytest.approx([1, 1, 1], abs=1e-3)


def test_copula_critic_is_the_log_ratio_of_new_data():
    x, y = gaussian(4000)
    critic = c.CopulaCritic(x.exp(), y**3)  # fitted to what monotone maps made of it
    new_x, new_y = gaussian(300, 1)
    near = (new_x.abs() < 2) & (new_y.abs() < 2)
    near = near[:, 0]
    found = critic(new_x.exp(), new_y**3)
    assert (found - Exact()(new_x, new_y))[near].abs().mean() < 0.05
    matrix = critic.pairwise(new_x.exp(), new_y**3)
    torch.testing.assert_close(matrix.diagonal(), found, atol=1e-4, rtol=1e-4)
    assert n.JSD(critic).estimate(new_x.exp(), new_y**3).value == pytest.approx(TRUTH, abs=0.15)
    heavy = torch.randn(3000, 2) / torch.randn(3000, 2).norm(dim=1, keepdim=True)
    student = c.CopulaCritic(heavy[:, :1], heavy[:, 1:])
    assert 1 < student.dof < 4
    ratio = student.pairwise(heavy[:500, :1], heavy[:500, 1:])
    assert ratio.exp().mean().item() == pytest.approx(1, abs=0.2)  # E⁻ p/p⁻ = 1


def test_residual_starts_at_its_base():
    base = Exact()
    critic = c.ResidualCritic(base, c.ConcatCritic(1, 1, 8))
    x, y = gaussian(10)
    assert torch.equal(critic(x, y), base(x, y))
    estimator = n.JSD(critic)
    estimator.fit(*gaussian(300), steps=10, batch_size=64)
    assert critic.gain.item() != 0 or critic(x, y).equal(base(x, y))

"""Critics, decoders and learnt estimators."""

import math

import numpy as np
import pytest
import torch
from scipy import special

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


def test_averaged_parameters_are_what_is_kept():
    """Of two steps they are the mean; of many, an average that forgets."""
    x, y = gaussian(40)
    seen = []

    class Watched(n.NWJ):
        def loss(self, *args, **options):
            if torch.is_grad_enabled():
                seen.append(self.critic.weight.detach().clone())
            return -self.critic.weight.sum() + 0 * super().loss(*args, **options)

    for average, steps, rate in ((0.9, 2, [1, 0.5]), (0.5, 3, [1, 0.5, 0.5])):
        seen.clear()
        estimator = Watched(c.BilinearCritic(1, 1))
        start = estimator.critic.weight.item()
        options = {"batch_size": 8, "lr": 0.1, "average": average, "every": steps}
        report = estimator.fit(x, y, steps=steps, **options)
        assert report.loss == pytest.approx(-estimator.critic.weight.item())
        after = [w.item() for w in seen[1:]] + [seen[-1].item() + (seen[-1] - seen[-2]).item()]
        expected = start
        for weight, share in zip(after, rate, strict=True):
            expected += share * (weight - expected)
        assert estimator.critic.weight.item() == pytest.approx(expected, abs=2e-3)
        assert estimator.critic.weight.item() < after[-1] - 0.02


def test_the_best_of_all_judgements_is_kept_and_every_says_how_often():
    x, y = gaussian(60)
    torch.manual_seed(0)
    for every, patience in ((1, 3), (4, 2)):
        estimator = n.NWJ(c.ConcatCritic(1, 1, 8))
        report = estimator.fit(
            x, y, steps=400, batch_size=32, lr=0.1, every=every, patience=patience
        )
        assert report.converged and report.steps - report.best_step == every * patience
        assert report.best_step % every == 0


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
        assert not estimator.pointwise(z, y, negatives=own).requires_grad
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
        c.GatedCritic(3, 2, 8, 4, 2),
        c.BilinearCritic(3, 2),
        c.ConcatCritic(3, 2, 8),
        c.ConcatCritic(3, 2, 8, layers=1),
        c.EnsembleCritic([c.BilinearCritic(3, 2), c.ConcatCritic(3, 2, 8)]),
        c.ResidualCritic(c.BilinearCritic(3, 2), c.ConcatCritic(3, 2, 8)),
        c.SumCritic([c.BilinearCritic(3, 2), c.ConcatCritic(3, 2, 8)]),
        c.LipschitzCritic(3, 2, 8).eval(),
        c.GaussianDecoder(3, 2, 8),
        c.GaussianDecoder(3, 2, 8, std=0.5),
        c.MixtureDecoder(3, 2, 3, 8),
        c.BernoulliDecoder(3, 2, 8),
        c.VonMisesFisherDecoder(3, 2, 8),
        c.FlowDecoder(3, 2, 3, 8),
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


def test_a_gate_finds_the_edges_of_a_density():
    """Uniform x plus uniform noise, 1/2 nat."""
    found = {}
    for critic in (c.GatedCritic, c.SeparableCritic):
        torch.manual_seed(0)
        x = torch.rand(4000, 1)
        y = x + torch.rand(4000, 1) - 0.5
        x, y = (x - 0.5) / x.std(), (y - 0.5) / y.std()
        estimator = n.DonskerVaradhan(critic(1, 1, 32, 16))
        estimator.fit(x[:3000], y[:3000], steps=500, lr=1e-2, patience=20, average=0.98)
        found[critic] = estimator.estimate(x[3000:], y[3000:]).value
    assert found[c.SeparableCritic] + 0.03 < found[c.GatedCritic] < 0.53


def test_class_decoder():
    decoder, x, y = c.CategoricalDecoder(3, 4, 8), torch.randn(5, 3), torch.tensor([0, 3, 1])
    pairs = torch.stack([decoder(x, y[j].expand(5)) for j in range(3)], 1)
    torch.testing.assert_close(decoder.pairwise(x, y), pairs)
    every = decoder.pairwise(x, torch.arange(4)).exp().sum(1)
    torch.testing.assert_close(every, torch.ones(5))


def jitter(module: torch.nn.Module, size: float = 0.5) -> torch.nn.Module:
    """The module with parameters that no initialisation makes special."""
    torch.manual_seed(0)
    for p in module.parameters():
        p.data.add_(size * torch.randn_like(p))
    return module


@pytest.mark.parametrize(
    "decoder",
    [
        c.GaussianDecoder(2, 1, 8),
        c.MixtureDecoder(2, 1, 3, 8),
        jitter(c.FlowDecoder(2, 1, 3, 8), 0.1),
    ],
    ids=lambda v: type(v).__name__,
)
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


def test_a_flow_in_two_dimensions_is_a_density():
    flow = jitter(c.FlowDecoder(1, 2, 3, 8), 0.2)
    grid = torch.linspace(-12, 12, 401)
    y = torch.cartesian_prod(grid, grid)
    density = flow(torch.ones(len(y), 1), y).exp()
    assert density.sum().item() * (grid[1] - grid[0]).item() ** 2 == pytest.approx(1, abs=0.01)
    far = torch.full((1, 2), 100.0, requires_grad=True)
    flow(torch.ones(1, 1), far).sum().backward()
    assert far.grad is not None and torch.isfinite(far.grad).all()


def test_a_flow_learns_how_coordinates_belong_together():
    """Two coordinates of correlation 0.9: a density without it loses 0.83 nats."""
    torch.manual_seed(0)
    flow = c.FlowDecoder(1, 2, 2, 16)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    mix = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))

    def loss(n):
        return -flow(torch.zeros(n, 1), torch.randn(n, 2) @ mix.T).mean()

    for _ in range(200):
        optimizer.zero_grad()
        loss(256).backward()
        optimizer.step()
    entropy = math.log(2 * math.pi * math.e) + 0.5 * math.log(1 - 0.9**2)
    assert loss(20_000).item() == pytest.approx(entropy, abs=0.1)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 4.0, 30.0])
def test_bessel_functions_and_their_slope(order):
    x = torch.tensor([1e-3, 0.1, 1.0, 7.0, 50.0, 1e3], dtype=torch.float64, requires_grad=True)
    value = c.log_bessel(order, x)
    truth = np.log(special.ive(order, x.detach().numpy()))
    sane = np.isfinite(truth)
    assert value.detach().numpy()[sane] == pytest.approx(truth[sane], abs=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), x)
    ratio = special.ive(order + 1, x.detach().numpy()) / special.ive(order, x.detach().numpy())
    expected = ratio + order / x.detach().numpy() - 1
    assert slope.numpy()[sane] == pytest.approx(expected[sane], abs=1e-5, rel=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_directions_have_a_density_on_the_sphere(size):
    torch.manual_seed(0)
    decoder = jitter(c.VonMisesFisherDecoder(2, size, 8))
    y = torch.nn.functional.normalize(torch.randn(400_000, size), dim=-1)
    area = 2 * math.pi ** (size / 2) / math.gamma(size / 2)
    x = torch.randn(3, 2)
    total = decoder.pairwise(x, y).exp().mean(1) * area
    assert total.tolist() == pytest.approx([1, 1, 1], abs=0.03)
    kappa = decoder.natural(100 * x).norm(dim=-1)
    assert (kappa < 100).all() and (kappa > 1).all()
    with pytest.raises(ValueError, match="y_size >= 2"):
        c.VonMisesFisherDecoder(2, 1)


def test_a_relation_does_not_depend_on_the_order_unless_it_is_told_to():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    for aggregate in ("sum", "mean", "max", "concat"):
        critic = c.RelationCritic(3, 8, aggregate)
        matrix = critic.pairwise(x, y)
        torch.testing.assert_close(matrix[:, 1], critic(x, y[1].expand(5, 3)))
        assert torch.allclose(matrix, critic.pairwise(y, x).T) == (aggregate != "concat")
    with pytest.raises(ValueError, match="aggregate"):
        c.RelationCritic(3, 8, "median")  # type: ignore[arg-type]


def test_a_lipschitz_critic_never_stretches_even_when_it_is_trained_to():
    torch.manual_seed(0)
    critic = c.LipschitzCritic(2, 3, 16)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(100):
        z = torch.randn(64, 5)
        optimizer.zero_grad()
        (-(critic(z[:, :2], z[:, 2:]) * z[:, 0]).mean()).backward()
        optimizer.step()
    critic.eval()
    a, b = torch.randn(2, 3000, 5)
    change = (critic(a[:, :2], a[:, 2:]) - critic(b[:, :2], b[:, 2:])).abs()
    assert (change / (a - b).norm(dim=1)).max() <= 1.01
    z = torch.randn(2000, 5)
    assert (critic(z[:, :2], z[:, 2:]) * z[:, 0]).mean() > 0.7  # not vacuous; f = x_1 gives 1


def test_a_fixed_deviation_is_a_squared_error():
    torch.manual_seed(0)
    decoder, x, y = c.GaussianDecoder(3, 2, 8, std=2.0), torch.randn(5, 3), torch.randn(5, 2)
    error = (y - decoder.moments(x)[0]).square().sum(-1) / 8
    expected = -error - 2 * math.log(2.0) - math.log(2 * math.pi)
    torch.testing.assert_close(decoder(x, y), expected)
    weight = torch.tensor([1.0, 2, 0, 0, 1])  # positions of a sequence, say
    value = n.BarberAgakov(decoder, 1.5).bound(x, y, weight=weight)
    torch.testing.assert_close(value, 1.5 + (expected * weight).sum() / 4)


def test_a_part_of_the_training_samples_is_recognised_and_new_samples_are_not():
    x, y = gaussian(300)
    estimator = n.SMILE(c.SeparableCritic(1, 1, 8, 4))
    estimator.fit(x, y, steps=2, batch_size=32)
    for seen in ((x[50:150], y[50:150]), (x.flip(0), y.flip(0))):
        assert any("fitted to" in w for w in estimator.estimate(*seen).warnings)
    assert not estimator.estimate(*gaussian(300, 1)).warnings
    classes = torch.arange(300) % 2
    estimator = n.BarberAgakov(c.CategoricalDecoder(1, 2, 8), math.log(2))
    flags = (torch.arange(300) % 3)[:, None].float()  # rows that repeat say nothing
    estimator.fit(flags, classes, steps=2, batch_size=32)
    assert not estimator.estimate(flags, classes).warnings


def test_bad_samples_are_named():
    x, y = gaussian(50)
    bad = y.clone()
    bad[7] = math.nan
    estimator = n.JSD(c.ConcatCritic(1, 1, 8))
    for call, message in (
        (lambda: estimator.fit(x, bad), "y: column 0 holds values that are not finite"),
        (lambda: estimator.estimate(bad, y), "x: column 0 holds values that are not finite"),
        (lambda: estimator.fit(0 * x, y), "x: column 0 is constant"),
        (lambda: estimator.fit(x, y[:20]), "at least 10 pairs, got 50 x and 20 y"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_chain_walks_from_the_joint_to_the_product_distribution():
    """Waypoints √(1 - s²) y + s y' by hand, of a skewed y, whose sign matters."""

    class Sum(c.Critic):
        def forward(self, x, y):
            return (x + 2 * y).sum(-1)

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 2, generator=generator), torch.rand(6, 2, generator=generator).square()
    half = math.sqrt(0.75) * y + 0.5 * y.roll(1, 0)
    f, terms = Sum(), []
    for near, far in ((y, half), (half, y.roll(1, 0))):
        real, fake = f(x, near), f(x, far)
        terms.append(torch.nn.functional.softplus(-real) + torch.nn.functional.softplus(fake))
    expected = torch.stack(terms).mean()
    found = n.DensityRatioChain([Sum(), Sum()]).loss(x, y)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.full
def test_a_chain_of_ratios_reaches_further_than_one_classifier():
    """20 nats in 10 dimensions, where joint and product hardly overlap."""
    torch.manual_seed(0)
    rho = math.sqrt(1 - math.exp(-4))
    x = torch.randn(6000, 10)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(6000, 10)
    found = {}
    for name in ("tre", "jsd"):
        torch.manual_seed(0)
        estimator = n.LEARNT[name][1](10, 10)
        estimator.fit(x[:4000], y[:4000], steps=1000, lr=2e-3, patience=12)
        found[name] = estimator.estimate(x[4000:], y[4000:]).value
    assert found["jsd"] + 2 < found["tre"] < 21


def test_bridges_of_the_chain_are_told_apart_by_log_ratios():
    """Exact log-ratios of Gaussian waypoints add up to the information; none trains lower."""
    rho = 0.9
    shares = torch.linspace(0, 1, 4)

    class Bridge(c.Critic):
        def __init__(self, a, b, scale=1.0):
            super().__init__()
            self.r, self.scale = [rho * math.sqrt(1 - s**2) for s in (a, b)], scale

        def forward(self, x, y):
            first, second = (
                -0.5 * ((y - r * x) ** 2 / (1 - r * r) + math.log(1 - r * r)) for r in self.r
            )
            return self.scale * (first - second)[..., 0]

        def pairwise(self, x, y):
            return self(x[:, None], y[None])

    torch.manual_seed(0)
    x = torch.randn(4000, 1)
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(4000, 1)
    ends = list(zip(shares[:-1].tolist(), shares[1:].tolist(), strict=True))
    chain = n.DensityRatioChain([Bridge(a, b) for a, b in ends])
    truth = -0.5 * math.log(1 - rho**2)
    assert chain.bound(x[:1000], y[:1000]).item() == pytest.approx(truth, abs=0.1)
    best = chain.loss(x, y)
    for scale in (0.7, 1.3):
        assert n.DensityRatioChain([Bridge(a, b, scale) for a, b in ends]).loss(x, y) > best
    own = chain.loss(x, y, negatives=y.roll(1, 0)[:, None])
    torch.testing.assert_close(own, best)
    with pytest.raises(ValueError, match="at least 2 critics"):
        n.DensityRatioChain([Bridge(0, 1)])

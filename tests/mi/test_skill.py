"""Skill objectives: bounds with known values, Lipschitz constants, dual variables."""

import math

import pytest
import torch
from torch import nn

import mi


def train(objective: mi.SkillObjective, batch, steps: int = 400, lr: float = 3e-3) -> None:
    optimizer = torch.optim.Adam(objective.parameters(), lr)
    for i in range(steps):
        loss = objective.loss(*batch(i))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_categorical_reaches_the_mutual_information_of_a_noisy_channel():
    """x' names the skill with probability 1 - e, else another: I is known in closed form."""
    size, error = 4, 0.2
    torch.manual_seed(0)

    def batch(seed):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randint(size, (512,), generator=generator)
        wrong = torch.rand(512, generator=generator) < error
        shown = torch.where(
            wrong, (z + torch.randint(1, size, (512,), generator=generator)) % size, z
        )
        one_hot = nn.functional.one_hot
        return torch.zeros(512, size), one_hot(shown, size).float(), one_hot(z, size).float()

    objective = mi.CategoricalDiscriminator(size, size, hidden=32)
    train(objective, batch)
    value = torch.cat([objective.pointwise(*batch(10_000 + i)) for i in range(40)]).mean().item()
    entropy = -(1 - error) * math.log(1 - error) - error * math.log(error / (size - 1))
    assert value == pytest.approx(math.log(size) - entropy, abs=0.03)


def test_gaussian_is_worth_nothing_without_information_and_much_with_it():
    torch.manual_seed(0)

    def batch(seed, informative):
        generator = torch.Generator().manual_seed(seed)
        z = nn.functional.normalize(torch.randn(512, 2, generator=generator), dim=1)
        noise = torch.randn(512, 3, generator=generator)
        x = torch.cat([z, noise[:, :1]], 1) if informative else noise
        return torch.zeros_like(x), x, z

    for informative, low, high in ((False, -0.05, 0.35), (True, 2.5, 4.5)):
        objective = mi.GaussianDiscriminator(3, 2, hidden=32)
        train(objective, lambda i, known=informative: batch(i, known))
        value = objective.pointwise(*batch(99_999, informative)).mean().item()
        assert low < value < high, (informative, value)


@pytest.mark.parametrize("features", [2, 3, 12])
def test_lipschitz_embedding_never_stretches(features):
    torch.manual_seed(0)
    objective = mi.LipschitzDisplacement(features, 2, hidden=32)

    def batch(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(256, features, generator=generator)
        step = torch.randn(256, features, generator=generator)
        return x, x + step, nn.functional.normalize(step[:, :2], dim=1)

    train(objective, batch)
    objective.eval()
    x, y = torch.randn(5000, features), torch.randn(5000, features)
    ratio = objective.displacement(x, y).norm(dim=1) / (x - y).norm(dim=1)
    assert ratio.max() <= 1.01  # power iteration is exact up to rounding
    # Not vacuous: it learned to keep a good share of the commanded displacement.
    start, end, skill = batch(12_345)
    ideal = ((end - start)[:, :2] * skill).sum(1).mean()
    assert objective.pointwise(start, end, skill).mean() > 0.5 * ideal


def test_temporal_distance_learns_unit_steps():
    """Whatever the size of a step in x, it becomes about 1 in the embedding (METRA)."""
    torch.manual_seed(0)

    def batch(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(512, 2, generator=generator) * 2 - 1
        z = nn.functional.normalize(torch.randn(512, 2, generator=generator), dim=1)
        return x, x + 0.05 * z, z

    objective = mi.TemporalDistance(2, 2, hidden=64)
    train(objective, batch, steps=2000)
    x, y, z = batch(99_999)
    step = objective.embedding(y) - objective.embedding(x)
    assert 0.7 < step.norm(dim=1).mean().item() < 1.1
    assert objective.pointwise(x, y, z).mean() > 0.7


def test_rewards_carry_no_gradient():
    for objective in (
        mi.CategoricalDiscriminator(3, 4),
        mi.GaussianDiscriminator(3, 4),
        mi.VonMisesFisherDiscriminator(3, 4),
        mi.LipschitzDisplacement(3, 4),
        mi.TemporalDistance(3, 4),
    ):
        x = torch.randn(5, 7, 3, requires_grad=True)
        skill = nn.functional.one_hot(torch.randint(4, (5, 7)), 4).float()
        reward = objective.pointwise(x, x + 1, skill)
        assert reward.shape == (5, 7)
        assert not reward.requires_grad


def test_lagrangian_moves_the_right_way_and_stays_in_bounds():
    multiplier = mi.Lagrangian(limit=5.0, initial=0.3, rate=0.1, gain=0.5, bounds=(0.1, 1.0))
    rising = [multiplier.update(torch.tensor(8.0)).item() for _ in range(30)]
    assert rising[0] == pytest.approx(0.3 * math.exp((0.1 + 0.5) * 0.6))
    assert rising == sorted(rising)
    assert multiplier.lasting.item() == 1.0
    for _ in range(100):
        multiplier.update(torch.tensor(0.0))
    assert multiplier.lasting.item() == pytest.approx(0.1)
    assert multiplier.value.item() == pytest.approx(0.1 * math.exp(-0.5))


def test_lagrangian_with_a_limit_of_nothing_moves_by_the_cost_itself():
    for cost, moved in ((1e-3, 1e-4), (-0.5, -0.05), (7.0, 0.1)):
        multiplier = mi.Lagrangian(limit=0.0, rate=0.1, gain=0.0)
        assert multiplier.update(torch.tensor(cost)).log().item() == pytest.approx(moved, abs=1e-6)


def test_lagrangian_holds_a_cost_at_its_limit():
    """A population that answers the multiplier by cost = 10 exp(-λ) settles where cost = limit."""
    multiplier = mi.Lagrangian(limit=2.0, initial=0.1, rate=0.05, gain=0.1)
    for _ in range(2000):
        multiplier.update(10 * torch.exp(-multiplier.value))
    assert (10 * torch.exp(-multiplier.value)).item() == pytest.approx(2.0, rel=0.02)


def test_proportional_term_damps_the_swing_of_dual_ascent():
    """A cost that moves a tenth of the way to 10 exp(-λ) per update lags behind the multiplier."""

    def swing(gain: float) -> float:
        multiplier = mi.Lagrangian(limit=2.0, initial=0.1, gain=gain)
        cost, costs = torch.tensor(0.0), []
        for _ in range(300):
            cost = cost + 0.1 * (10 * torch.exp(-multiplier.update(cost)) - cost)
            costs.append(cost)
        return torch.stack(costs[100:]).sub(2.0).abs().max().item()

    assert swing(2.0) < 0.5 * swing(0.0)


def test_club_at_the_true_posterior_of_a_noisy_channel():
    """Closed form, above the information where Barber-Agakov is equal to it."""
    size, error = 4, 0.2
    right, wrong = 1 - error, error / (size - 1)
    decoder = mi.CategoricalDiscriminator(size, size)
    decoder.decoder = nn.Linear(size, size, bias=False)
    with torch.no_grad():  # type: ignore[arg-type]
        decoder.decoder.weight.fill_(math.log(wrong)).fill_diagonal_(math.log(right))
    club = mi.ContrastiveUpperBound(decoder)
    shown, skill = torch.eye(size).repeat(size, 1), torch.eye(size).repeat_interleave(size, 0)
    weight = torch.where((shown * skill).sum(-1) > 0, right, wrong) / size
    value, exact = ((weight * o.pointwise(shown, shown, skill)).sum() for o in (club, decoder))
    likely = right * math.log(right) + error * math.log(wrong)
    assert exact.item() == pytest.approx(math.log(size) + likely, abs=1e-5)
    unrelated = (math.log(right) + (size - 1) * math.log(wrong)) / size
    assert value.item() == pytest.approx(likely - unrelated, abs=1e-5)
    assert value > exact


def test_prior_log_prob_is_the_mean_over_the_prior():
    torch.manual_seed(0)
    x = torch.randn(1, 3)
    categorical, gaussian = mi.CategoricalDiscriminator(3, 5), mi.GaussianDiscriminator(3, 2)
    every = categorical.log_prob(x.expand(5, 3), torch.eye(5)).mean()
    assert categorical.prior_log_prob(x).item() == pytest.approx(every.item(), abs=1e-6)
    angle = torch.arange(360) * (math.pi / 180)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    every = gaussian.log_prob(x.expand(360, 3), circle).mean()
    assert gaussian.prior_log_prob(x).item() == pytest.approx(every.item(), abs=1e-4)


def test_directional_discriminator_reaches_the_information_of_a_noisy_direction():
    """q(z|x') is von Mises with κ = 4: I = κ A(κ) - log I_0(κ), in closed form by Bessel ratios."""
    kappa = 4.0
    torch.manual_seed(0)
    noise = torch.distributions.VonMises(torch.tensor(0.0), torch.tensor(kappa))

    def batch(_):
        shown = 2 * math.pi * torch.rand(512)
        angle = shown + noise.sample((512,))
        x, z = (torch.stack([a.cos(), a.sin()], 1) for a in (shown, angle))
        return torch.zeros_like(x), x, z

    objective = mi.VonMisesFisherDiscriminator(2, 2, hidden=32)
    train(objective, batch)
    value = torch.cat([objective.pointwise(*batch(i)) for i in range(40)]).mean().item()
    k = torch.tensor(kappa, dtype=torch.float64)
    mean_cosine = torch.special.i1(k) / torch.special.i0(k)
    truth = (k * mean_cosine - torch.special.i0(k).log()).item()
    assert value == pytest.approx(truth, abs=0.03)
    club = mi.ContrastiveUpperBound(objective)  # the divergence both ways: κ A(κ) at the truth
    above = torch.cat([club.pointwise(*batch(i)) for i in range(40)]).mean().item()
    assert above == pytest.approx((k * mean_cosine).item(), abs=0.1)

"""Pieces of world models: returns, densities, convolutions, filtering, pairs of steps."""

import pytest
import torch

import envs
from agents.core.returns import lambda_returns
from agents.core.world import (
    RSSM,
    ConvDecoder,
    ConvEncoder,
    Gaussian,
    Pairs,
    TanhGaussianPolicy,
    WorldModel,
    earlier,
    mean_since,
    symexp,
    symlog,
    take,
)


def test_lambda_returns_by_hand():
    reward, value = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    discount = torch.tensor([0.9, 0.5, 0.8])
    third = 3 + 0.8 * 30
    second = 2 + 0.5 * (0.25 * 20 + 0.75 * third)
    first = 1 + 0.9 * (0.25 * 10 + 0.75 * second)
    got = lambda_returns(reward, value, discount, 0.75)
    assert got.tolist() == pytest.approx([first, second, third])
    got = lambda_returns(reward, value, torch.tensor([0.9, 0.0, 0.8]), 0.75)
    assert got[1] == 2  # its successor is terminal
    assert lambda_returns(reward, value, discount, 0.0)[0].item() == pytest.approx(1 + 0.9 * 10)


def test_symlog_inverts():
    x = torch.tensor([-100.0, -0.5, 0.0, 2.0, 1e4])
    assert torch.allclose(symexp(symlog(x)), x)


def test_tanh_gaussian_density_is_torchs():
    moments = Gaussian(torch.tensor([[0.3, -1.0]]), torch.tensor([[0.5, 0.9]]))
    action, log_prob = TanhGaussianPolicy.sample(moments, torch.tensor([[0.4, -2.0]]))
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(*moments), torch.distributions.TanhTransform()
    )
    assert torch.allclose(log_prob, reference.log_prob(action).sum(-1), atol=1e-4)
    _, far = TanhGaussianPolicy.sample(moments, torch.full((1, 2), 80.0))  # tanh is 1 exactly
    assert torch.isfinite(far).all()


@pytest.mark.parametrize("size", [16, 46, 48, 64, 84])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_decoder_mirrors_encoder(size, bfloat16):
    encoder = ConvEncoder((3, size, size), 4, bfloat16)
    obs = torch.randint(256, (2, 5, 3, size, size), dtype=torch.uint8)
    assert encoder(obs).shape == (2, 5, encoder.size)
    assert encoder(obs).dtype == torch.float32
    decoder = ConvDecoder(7, (3, size, size), 4, bfloat16)
    assert decoder(torch.zeros(2, 5, 7)).shape == obs.shape


def test_untrained_codes_tell_images_apart():
    """Else a contrast or a decoder first learns to ignore codes that are noise to it."""
    torch.manual_seed(0)
    world = WorldModel((3, 48, 48), 2, 8, 32, 16, 64, False, True, False)
    obs = envs.make("pixels/point", 64, "cpu", 0, size=48).reset(seed=0)[0]
    with torch.no_grad():
        posterior = world.rssm.posterior(world.encoder(obs), torch.zeros(64, 32))
        pictures = world.decoder(torch.randn(64, 48))
    assert posterior.mean.std(0).mean() > 0.5 * posterior.std.mean()
    assert pictures.std(0).mean() > 0.1


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="15 pixels: expected at least 16"):
        ConvEncoder((3, 15, 64), 4)


def test_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    half, single = (ConvEncoder((3, 64, 64), 4, kind) for kind in (True, False))
    half.load_state_dict(single.state_dict())
    obs = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    x, y = half(obs), single(obs)
    assert (x - y).norm() / y.norm() < 0.02
    assert not torch.equal(x, y)


def sequence(recurrent: bool, first: torch.Tensor, action: torch.Tensor):
    torch.manual_seed(0)
    rssm = RSSM(6, 2, 8, 4, 16, recurrent)
    embedding, noise = torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    return rssm.observe(embedding, action, first, noise)


@pytest.mark.parametrize("recurrent", [False, True])
def test_an_episode_forgets_the_one_before(recurrent):
    first = torch.tensor([[True, False, False, True, False], [True] + 4 * [False]])
    action = torch.randn(2, 5, 2)
    seen = sequence(recurrent, first, action)
    action[:, 2] += 1
    other = sequence(recurrent, first, action)
    assert not torch.equal(seen.deter[0, 2], other.deter[0, 2])
    assert torch.equal(seen.features[0, 3:], other.features[0, 3:])
    assert not torch.equal(seen.deter[1, 3:], other.deter[1, 3:])


def test_only_the_published_posterior_contains_the_action():
    first = torch.zeros(2, 5, dtype=torch.bool)
    for recurrent in (False, True):
        code = [sequence(recurrent, first, a * torch.ones(2, 5, 2)).code for a in (0.0, 1.0)]
        assert torch.equal(*code) is not recurrent


def test_pairs_stay_in_their_episode():
    first = torch.tensor([[True, False, False, True, False, False]])
    generator = torch.Generator().manual_seed(0)
    one = earlier(first, 1, generator)
    assert one.start.tolist() == [[0, 0, 1, 2, 3, 4]]
    assert one.mask.tolist() == [[False, True, True, False, True, True]]
    found = set()
    for _ in range(50):
        pairs = earlier(first, 3, generator)
        for t in range(6):
            if pairs.mask[0, t]:
                start = pairs.start[0, t].item()
                assert t - start == pairs.steps[0, t]
                found.add((start, t))
    assert found == {(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)}


def test_take_by_hand():
    x = torch.arange(6.0).view(1, 3, 2)
    assert take(x, torch.tensor([[2, 0, 0]])).tolist() == [[[4, 5], [0, 1], [0, 1]]]


def test_mean_since_by_hand():
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    start, steps = torch.tensor([[0, 0, 0, 2]]), torch.tensor([[3, 1, 2, 1]])
    pairs = Pairs(start, steps, start >= 0)
    assert mean_since(x, pairs, 3)[0, :, 0].tolist() == pytest.approx([14 / 3, 2, 3, 8])


def test_mean_since_one_step_is_that_step():
    x = torch.randn(2, 6, 3)
    pairs = earlier(torch.zeros(2, 6, dtype=torch.bool), 1, torch.Generator())
    assert torch.equal(mean_since(x, pairs, 1)[:, 1:], x[:, 1:])


def test_reward_information_of_a_known_head():
    """A head that knows nothing has 0 nats, one ten times as sharp log 10."""
    torch.manual_seed(0)
    world = WorldModel((3, 48, 48), 2, 4, 8, 4, 16, False, False, True)
    target = torch.randn(20000)

    class Head(torch.nn.Module):
        min_std = 0.0

        def __init__(self, std):
            super().__init__()
            self.std = std

        def forward(self, features, y):
            mean = features[..., :1] if self.std < 1 else torch.zeros_like(y)
            return torch.distributions.Normal(mean, self.std).log_prob(y).sum(-1)

    for std, nats in ((1.0, 0.0), (0.1, 2.3026)):
        world.reward = Head(std)  # type: ignore[assignment]
        knows = target + 0.1 * torch.randn(20000)
        got = world.reward_information(knows[:, None], symexp(target))
        assert got.item() == pytest.approx(nats, abs=0.03)


def test_imagination_follows_the_model():
    torch.manual_seed(0)
    world = WorldModel((3, 48, 48), 2, 4, 8, 4, 16, False, False, True)
    policy = TanhGaussianPolicy(torch.nn.Linear(12, 4))
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(3, 12, requires_grad=True)
    seen = world.imagine(policy, start, 4, lambda *s: torch.randn(*s, generator=draws))
    assert seen.states.shape == (5, 3, 12)
    assert seen.reward.shape == seen.continues.shape == seen.log_prob.shape == (4, 3)
    assert torch.equal(seen.states[0], start)
    for t in range(4):
        deter = world.rssm.advance(*seen.states[t].split([8, 4], -1), seen.action[t])
        assert torch.allclose(deter, seen.states[t + 1][:, :8])
    seen.reward[-1].sum().backward()
    assert policy.network.weight.grad is not None  # gradients reach the policy through the model
    assert policy.network.weight.grad.abs().sum() > 0

"""Normalisers, the Gaussian policy and its density."""

import pytest
import torch

from agents.core.nets import GaussianPolicy, RunningNorm, gaussian_log_prob


def test_running_norm_is_exact_over_unequal_batches():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 5 + 100
    norm = RunningNorm(3)
    for part in x.split([1, 10, 300, 689]):
        norm.update(part.view(-1, 1, 3))
    assert torch.allclose(norm.mean, x.double().mean(0))
    assert torch.allclose(norm.variance, x.double().var(0, correction=0))
    assert norm(x).std(0, correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert norm(x + 1e6).max() == 10


def test_gaussian_log_prob_is_torchs():
    mean, log_std, action = torch.randn(7, 3), torch.randn(3), torch.randn(7, 3)
    reference = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)
    assert torch.allclose(gaussian_log_prob(action, mean, log_std), reference, atol=1e-5)


def test_policy_std_starts_where_asked_and_keeps_its_gradient_at_the_bounds():
    policy = GaussianPolicy(4, (8,), 2, initial_std=0.5, bounds=(0.1, 1.0))
    assert policy(torch.zeros(1, 4))[1].exp().tolist() == pytest.approx([0.5, 0.5])
    with torch.no_grad():
        policy.raw_std.fill_(30.0)
    log_std = policy(torch.zeros(1, 4))[1]
    assert log_std.exp().max() <= 1.0 + 1e-6
    with torch.no_grad():
        policy.raw_std.fill_(4.0)
    policy(torch.zeros(1, 4))[1].sum().backward()
    assert policy.raw_std.grad is not None
    assert (policy.raw_std.grad > 0).all()


def test_samples_follow_the_density():
    policy = GaussianPolicy(1, (8,), 1, initial_std=0.3)
    x = torch.ones(20_000, 1)
    with torch.no_grad():
        sample, (mean, _) = policy.sample(x, torch.Generator().manual_seed(0)), policy(x)
    assert (sample - mean).std().item() == pytest.approx(0.3, rel=0.03)
    assert (sample - mean).mean().item() == pytest.approx(0, abs=0.01)

"""Objectives of the published families: known values, what they ignore, what they refuse."""

import math

import pytest
import torch
from torch.nn import functional as F

import mi
from mi import critics


def fit(parameters, loss, steps: int, lr: float = 1e-2) -> None:
    optimizer = torch.optim.Adam(parameters, lr)
    for i in range(steps):
        optimizer.zero_grad()
        loss(i).backward()
        optimizer.step()


def test_generated_negatives_equal_the_published_loss():
    torch.manual_seed(0)
    query, key, others = torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 16, 4)
    objective = mi.GeneratedNegatives(temperature=0.1)
    q, k, n = (F.normalize(v, dim=-1) for v in (query, key, others))
    logits = torch.cat([(q * k).sum(-1, keepdim=True), torch.einsum("bd,bkd->bk", q, n)], 1) / 0.1
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)) - math.log(17)
    assert objective.loss(query, key, others).item() == pytest.approx(expected.item(), abs=1e-5)
    terms = objective.pointwise(query, key, others.requires_grad_())
    assert terms.shape == (6,) and not terms.requires_grad
    assert terms.mean().item() == pytest.approx(-expected.item(), abs=1e-5)
    assert terms.max() <= math.log(17)
    exclude = torch.zeros(6, 16, dtype=torch.bool)
    exclude[:, 5:] = True
    fewer = objective.loss(query, key, others, exclude=exclude)
    torch.testing.assert_close(fewer, objective.loss(query, key, others[:, :5]))
    with pytest.raises(ValueError, match=r"negatives \[\*, B, K, d\]"):
        objective.loss(query, key, others[0])


def test_what_negatives_share_with_the_anchor_tells_nothing():
    """Codes that hold a behaviour as well: only I(task; task') given the behaviour is counted."""
    torch.manual_seed(0)
    rho, n, k = 0.8, 8000, 255
    variance, truth = 1 - rho**2, -0.5 * math.log(1 - rho**2)
    task, noise, angle = torch.randn(3, n)
    behaviour = 3 * torch.stack([(4 * angle).cos(), (4 * angle).sin()], -1)
    after = rho * task + math.sqrt(variance) * noise
    other = torch.randn(n, k)  # other tasks under the same behaviour

    def query(x, b):  # q·k = log p(y|x)/p(y), up to what depends on x alone, and b b'
        return torch.stack([rho * x / variance, torch.ones_like(x), *b.unbind(-1)], -1)

    def key(y, b):
        return torch.stack([y, -0.5 * rho**2 / variance * y**2, *b.unbind(-1)], -1)

    objective = mi.GeneratedNegatives(temperature=1.0, cosine=False)
    args = query(task, behaviour), key(after, behaviour)
    found = objective.information(*args, key(other, behaviour[:, None].expand(n, k, 2)))
    assert found.item() == pytest.approx(truth, abs=0.035)  # 4 standard errors
    in_batch = mi.functional.infonce(args[0][:1000] @ args[1][:1000].T)
    assert in_batch > truth + 1  # which counts the behaviour, too


def test_clustered_positives_equal_the_published_loss_up_to_its_constants():
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 6, requires_grad=True)
    cluster = torch.randint(3, (2, 3, 5))
    cluster[0, 0] = torch.tensor([0, 1, 1, 1, 1])  # somebody alone
    alive = torch.rand(2, 3, 5) < 0.8
    alive[0, 0] = True
    objective = mi.ClusteredPositives(4, 6)
    terms = objective.pointwise(query, key, cluster, alive)
    scores = objective.critic.pairwise(query, key)
    for b, t, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        there = alive[b, t]
        same = there & (cluster[b, t] == cluster[b, t, i])
        if not there[i] or same.equal(there):
            assert terms[b, t, i] == 0
            continue
        f = scores[b, t, i].exp()
        published = (f[same].sum() / f[there].sum()).log()
        constant = math.log(there.sum().item() / same.sum().item())
        assert terms[b, t, i].item() == pytest.approx(published.item() + constant, abs=1e-5)
    assert terms[0, 0, 0] != 0
    objective.loss(query, key, cluster, alive).backward()
    assert key.grad is None  # keys are constants
    (grad,) = torch.autograd.grad(objective.loss(query, key, cluster), objective.critic.weight)
    assert grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"cluster \[\*, A\]"):
        objective.loss(query, key, cluster[0])


def test_clustered_positives_reach_the_information_of_the_clusters():
    """Four agents in two clusters of two: log 2 nats, and no more."""
    torch.manual_seed(0)
    cluster = torch.tensor([0, 0, 1, 1]).expand(16, 4)
    code = F.one_hot(cluster, 2).float()
    objective = mi.ClusteredPositives(2, 2)
    fit(objective.parameters(), lambda _: objective.loss(code, code, cluster), 200, 0.1)
    assert objective.information(code, code, cluster).item() == pytest.approx(math.log(2), abs=0.01)


def test_empowerment_of_a_noisy_channel_is_its_capacity():
    """End = action, with probability 0.1 another: uniform actions attain the capacity."""
    size, error = 4, 0.1
    torch.manual_seed(0)

    def batch(n):
        action = torch.randint(size, (n,))
        wrong = torch.rand(n) < error
        end = torch.where(wrong, (action + torch.randint(1, size, (n,))) % size, action)
        return torch.randn(n, 2), action, F.one_hot(end, size).float()

    objective = mi.VariationalEmpowerment(critics.CategoricalDecoder(2 + size, size, 32))
    fit(objective.parameters(), lambda _: objective.loss(*batch(512)), 300)
    channel = torch.full((size, size), error / (size - 1)).fill_diagonal_(1 - error)
    capacity = mi.channel_capacity(channel).value
    start, action, end = batch(20_000)
    log_policy = torch.full((20_000,), -math.log(size))
    found = objective.pointwise(start, action, end, log_policy)
    assert found.shape == (20_000,) and not found.requires_grad
    assert found.mean().item() == pytest.approx(capacity, abs=0.03)
    mean = objective.information(start, action, end, -math.log(size))
    assert mean.item() == pytest.approx(found.mean().item(), abs=1e-5)
    noise = end[torch.randperm(len(end))]  # what follows has nothing to do with the action
    fit(objective.parameters(), lambda _: objective.loss(start, action, noise), 100)
    assert objective.information(start, action, noise, log_policy).item() < 0.02


def test_empowerment_of_a_linear_system():
    """S' = a + N(0, σ²), a ~ N(0, 1): ½ log(1 + 1/σ²); masked steps do not count."""
    torch.manual_seed(0)
    sigma = 0.5

    def batch(n):
        action = torch.randn(n, 1)
        return torch.zeros(n, 1), action, action + sigma * torch.randn(n, 1)

    objective = mi.VariationalEmpowerment(critics.GaussianDecoder(2, 1, 32))
    fit(objective.parameters(), lambda _: objective.loss(*batch(256)), 400, 3e-3)
    start, action, end = batch(20_000)
    log_policy = torch.distributions.Normal(0, 1).log_prob(action)[:, 0]
    truth = mi.gaussian_capacity(torch.eye(1), sigma, 1.0).value
    value = objective.information(start, action, end, log_policy)
    assert value.item() == pytest.approx(truth, abs=0.04)
    keep = torch.arange(len(end)) < 10_000
    bad = end.clone()
    bad[~keep] = math.inf
    masked = objective.information(start, action, bad, log_policy, mask=keep)
    assert masked.item() == pytest.approx(truth, abs=0.04)
    code = end.clone().requires_grad_()
    (grad,) = torch.autograd.grad(objective.information(start, action, code, log_policy), code)
    assert grad.abs().sum() > 0

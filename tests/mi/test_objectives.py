"""Objectives of the published families: known values, what they ignore, what they refuse."""

import math

import pytest
import torch
from torch.nn import functional as F

import mi
from mi import critics, negatives, neural


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
    loss = objective.loss(query, key, cluster, alive)
    for grad in torch.autograd.grad(loss, (key, objective.critic.weight)):
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


class Ratio(critics.Critic):
    """Log p(y|x)/p(y) of jointly Gaussian x [*, d], y [*, 1], all of them correlated by ρ."""

    def __init__(self, d: int, rho: float) -> None:
        super().__init__()
        joint = rho + (1 - rho) * torch.eye(d + 1)
        self.slope = torch.linalg.solve(joint[:d, :d], joint[:d, d])
        self.variance = (1 - joint[d, :d] @ self.slope).item()

    def _ratio(self, mean, y):
        return -0.5 * (math.log(self.variance) + (y - mean) ** 2 / self.variance - y**2)

    def forward(self, x, y):
        return self._ratio(x @ self.slope, y[..., 0])

    def pairwise(self, x, y):
        return self._ratio((x @ self.slope)[..., None], y[..., 0][..., None, :])


def test_momentum_contrast_equals_the_published_loss():
    """ALBEF's: queue, momentum keys, soft targets, both directions."""
    torch.manual_seed(0)
    encode = torch.nn.Linear(3, 4), torch.nn.Linear(2, 4)
    objective = mi.MomentumContrast(*encode, size=4, queue=8, softness=0.4, temperature=0.2)
    first = torch.randn(6, 3), torch.randn(6, 2)
    objective.loss(*first)
    assert objective.filled.sum() == 6
    slow = [F.normalize(f(v), dim=-1).detach() for f, v in zip(encode, first, strict=True)]
    torch.testing.assert_close(objective.queue_x[:6], slow[0])  # the newest keys come first
    torch.testing.assert_close(objective.queue_y[:6], slow[1])
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    query = [F.normalize(f(v), dim=-1) for f, v in zip(encode, (x, y), strict=True)]
    expected = 0.0
    for a, b in ((0, 1), (1, 0)):  # encoders have not moved yet: slow ones are equal to them
        keys = torch.cat([query[b], slow[b]]).detach()
        scores = query[a] @ keys.T / 0.2
        targets = 0.4 * scores.detach().softmax(1) + 0.6 * torch.eye(5, 11)
        expected += 0.5 * (F.cross_entropy(scores, targets).item() - math.log(11))
    state = objective.queue_x.clone()
    assert -objective.information(x, y).item() == pytest.approx(expected, abs=1e-5)
    assert -objective.pointwise(x, y).mean().item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(state, objective.queue_x)
    assert objective.loss(x, y).item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(objective.queue_x[:5], query[0])
    assert objective.filled.all()


def test_slow_encoders_follow_and_are_not_trained():
    encoder = torch.nn.Linear(2, 2)
    objective = mi.MomentumContrast(encoder, encoder, 2, queue=4, momentum=0.9)
    before = objective.slow[0].weight.clone()
    with torch.no_grad():
        encoder.weight.add_(1)
    x = torch.randn(4, 2)
    objective.loss(x, x).backward()
    torch.testing.assert_close(objective.slow[0].weight, before + 0.1)  # shared: moved once
    assert objective.slow[0].weight.grad is None and encoder.weight.grad is not None
    kept = objective.queue_x.clone()
    with torch.no_grad():
        objective.loss(x + 1, x)
    assert torch.equal(objective.queue_x, kept)
    torch.testing.assert_close(objective.slow[0].weight, before + 0.1)


def test_views_are_summed_over_pairs():
    torch.manual_seed(0)
    views = {name: torch.randn(7, 4) for name in "abc"}
    objective = mi.MultiViewInfoNCE([("a", "b"), ("b", "c")], temperature=0.5)
    unit = {k: F.normalize(v, dim=-1) for k, v in views.items()}
    expected = sum(
        mi.functional.infonce(unit[p] @ unit[q].T / 0.5, symmetric=True) for p, q in ("ab", "bc")
    )
    torch.testing.assert_close(objective.information(views), expected)
    with pytest.raises(ValueError, match="no view 'c', only"):
        objective.loss({"a": views["a"], "b": views["b"]})


def test_pair_matching_is_binary_cross_entropy_with_hard_negatives():
    torch.manual_seed(0)
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    critic = critics.RelationCritic(3, 8, "concat")
    similarity = -100 * (torch.arange(6)[:, None] + 2 - torch.arange(6)).abs().float()
    wrong_y = torch.tensor([2, 3, 4, 5, 5, 4])  # two further, or as near to it as there is
    wrong_x = torch.tensor([1, 0, 0, 1, 2, 3])
    logits = critic(x, y), critic(x, y[wrong_y]), critic(x[wrong_x], y)
    for focal in (0.0, 2.0):
        terms = [
            (torch.sigmoid(-f) ** focal * F.softplus(-f)).mean()
            for f in (logits[0], -logits[1], -logits[2])
        ]
        loss = mi.PairMatching(critic, focal).loss(x, y, similarity)
        torch.testing.assert_close(loss, terms[0] + 0.5 * (terms[1] + terms[2]))
    assert torch.equal(mi.PairMatching(critic).pointwise(x, y), logits[0])


def test_pair_matching_learns_the_log_ratio():
    torch.manual_seed(0)
    matching = mi.PairMatching(critics.ConcatCritic(1, 1, 32))

    def batch(_, n=512):
        x = torch.randn(n, 1)
        return x, 0.8 * x + 0.6 * torch.randn(n, 1)

    fit(matching.parameters(), lambda i: matching.loss(*batch(i)), 400, 5e-3)
    x, y = batch(0, 4000)
    assert matching.pointwise(x, y).mean().item() == pytest.approx(0.5108, abs=0.08)


def test_slots_of_the_same_sample_are_the_negatives():
    """DGVAE's: softplus(-a_k b_k) + mean over other slots of softplus(a_k b_j)."""
    torch.manual_seed(0)
    a, b = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    critic = critics.BilinearCritic(3, 3)
    critic.weight.data = torch.eye(3)
    slots = mi.Slotwise(neural.JSD(critic))
    f = torch.einsum("nkd,njd->nkj", a, b)
    other = ~torch.eye(4, dtype=torch.bool)
    expected = F.softplus(-f.diagonal(dim1=1, dim2=2)).mean() + F.softplus(f[:, other]).mean()
    torch.testing.assert_close(slots.loss(a, b), expected)
    shared = torch.randn(5, 1, 3)  # what all slots share is in all candidates alike
    nce = mi.Slotwise(neural.InfoNCE(critic))
    torch.testing.assert_close(nce.loss(a + 0, b + shared), nce.loss(a, b))
    there = torch.ones(5, 4, dtype=torch.bool)
    there[:, 3] = False
    torch.testing.assert_close(nce.loss(a, b, there), nce.loss(a[:, :3], b[:, :3]))
    assert not nce.pointwise(a, b, there)[:, 3].any()
    with pytest.raises(ValueError, match="K >= 2"):
        slots.loss(a[0], b[0])


def test_class_infonce_equals_the_published_loss():
    """Generalised mutual learning: prior times the mean over a class's keys of e^f."""
    torch.manual_seed(0)
    query, key = torch.randn(6, 4), torch.randn(9, 4)
    labels, key_labels = torch.tensor([0, 1, 2, 0, 1, 3]), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
    prior = torch.tensor([5.0, 2.0, 2.0, 1.0]).log()
    objective = mi.ClassInfoNCE(4, prior, temperature=0.5)
    f = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / 0.5
    means = torch.stack([f[:, key_labels == c].exp().mean(1) for c in range(3)], 1)
    weighted = means * torch.tensor([5.0, 2.0, 2.0])
    share = weighted[torch.arange(5), labels[:5]] / weighted[:5].sum(1)
    # Class 3 has no keys: its anchor does not count and it takes no mass. Prior of sum 10.
    p = torch.tensor([0.5, 0.2, 0.2])[labels[:5]]
    expected = (share.log() - p.log()).mean()
    found = objective.information(query, labels, key, key_labels)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    code = 20 * F.one_hot(torch.tensor([0, 1, 2]), 3).float()
    sharp = mi.ClassInfoNCE(3, temperature=0.01).information(
        code, torch.arange(3), code, torch.arange(3)
    )
    assert sharp.item() == pytest.approx(math.log(3), abs=1e-5)
    with pytest.raises(ValueError, match=r"log_prior \[4\]"):
        mi.ClassInfoNCE(4, prior[:3])


def test_discrete_infomax_with_some_labels():
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3), torch.tensor([0, -1, 2, -1, -1, 1, -1, -1])
    objective = mi.DiscreteInfoMax(conditional_weight=0.3)
    known = labels >= 0
    p = logits[~known].softmax(1)
    mean = p.mean(0)
    expected = (mean * mean.log()).sum() - 0.3 * (p * p.log()).sum(1).mean()
    expected = expected + F.cross_entropy(logits[known], labels[known])
    assert objective.loss(logits, labels).item() == pytest.approx(expected.item(), abs=1e-5)
    plain = mi.DiscreteInfoMax()
    assert plain.pointwise(logits).mean().item() == pytest.approx(
        plain.information(logits).item(), abs=1e-6
    )
    assert (plain.pointwise(logits) >= 0).all()
    assert -plain.loss(100 * torch.eye(3)).item() == pytest.approx(math.log(3))


def test_adversarial_decoder_reads_what_is_real_and_not_what_is_generated():
    """Both columns tell the class of real samples, column 1 alone that of generated ones."""
    torch.manual_seed(0)
    game = mi.AdversarialBarberAgakov(critics.CategoricalDecoder(2, 2, 32), -math.log(2))
    plain = critics.CategoricalDecoder(2, 2, 32)

    def batch():
        x, noise = torch.randint(2, (512,)), torch.randn(2, 512)
        sign = 6.0 * x - 3
        real = torch.stack([sign + noise[0], sign + noise[1]], 1)
        fake = torch.stack([3 * noise[0], sign + noise[1]], 1)
        return x, real, fake

    fit(game.parameters(), lambda _: game.decoder_loss(*batch()), 300)

    def read(_):
        x, real, _ = batch()
        return -plain(real, x).mean()

    fit(plain.parameters(), read, 300)
    x, real, fake = batch()
    fooled, wary = ((d.network(fake).argmax(1) == x).float().mean() for d in (plain, game.decoder))
    assert fooled > 0.75 and wary < 0.65  # by column 1: P(N(3, √10) > 0) = 0.83 against chance
    reward = game.generator_reward(x, fake)
    assert reward.shape == (512,) and not reward.requires_grad
    assert reward.mean().item() < 0.1
    assert game.generator_reward(x, real).mean().item() > 0.5


def test_score_function_gradient_is_the_gradient_of_the_information():
    """With a uniform sampler all pairs are equally likely: their mean is the expectation."""
    torch.manual_seed(0)
    causes, actions = 3, 4
    objective = mi.ScoreFunctionBarberAgakov(
        critics.CategoricalDecoder(actions, causes, 8), -math.log(causes)
    )
    x, a = torch.cartesian_prod(torch.arange(causes), torch.arange(actions)).T
    one_hot = F.one_hot(a, actions).float()
    logits = torch.zeros(causes, actions, requires_grad=True)
    log_prob = logits.log_softmax(1)
    objective.baseline.fill_(0.7)  # whatever it is
    loss = objective.loss(x, one_hot, log_prob[x, a])
    learnt = list(objective.parameters())
    found, *decoder = torch.autograd.grad(loss, [logits, *learnt])
    alone = torch.autograd.grad(-objective.information(x, one_hot), learnt)
    for with_sampler, without in zip(decoder, alone, strict=True):
        torch.testing.assert_close(with_sampler, without)  # the sampler's term is not the decoder's
    nats = (objective.decoder(one_hot, x) + math.log(causes)).detach().view(causes, actions)
    information = (logits.softmax(1) * nats).sum() / causes
    (expected,) = torch.autograd.grad(-information, logits)
    torch.testing.assert_close(found, expected)
    assert objective.baseline.item() == pytest.approx(0.7 + 0.05 * (nats.mean().item() - 0.7))
    assert objective.information(x, one_hot).item() == pytest.approx(nats.mean().item(), abs=1e-6)
    assert objective.pointwise(x, one_hot).tolist() == pytest.approx(nats.flatten().tolist())


def test_score_function_learns_to_name_its_cause():
    torch.manual_seed(0)
    objective = mi.ScoreFunctionBarberAgakov(critics.CategoricalDecoder(3, 3, 16), -math.log(3))
    logits = torch.nn.Parameter(0.1 * torch.randn(3, 3))

    def loss(_):
        x = torch.randint(3, (128,))
        policy = torch.distributions.Categorical(logits=logits[x])
        action = policy.sample()
        return objective.loss(x, F.one_hot(action, 3).float(), policy.log_prob(action))

    fit([logits, *objective.parameters()], loss, 400, 2e-2)
    assert logits.argmax(1).unique().numel() == 3
    x = torch.arange(3)
    told = objective.information(x, F.one_hot(logits.argmax(1), 3).float())
    assert told.item() == pytest.approx(math.log(3), abs=0.1)


class Given(critics.Critic):
    """Log p(y|x, c)/p(y|c) for [x, c], of a pair that is shifted by c and correlated beyond it."""

    def pairwise(self, x, y):
        u, v = (x[:, 0] - x[:, 1])[:, None], y[:, 0] - x[:, 1:]
        return -0.5 * math.log(0.36) - 0.5 * (v - 0.8 * u) ** 2 / 0.36 + 0.5 * v**2


class Shifts(critics.CategoricalDecoder):
    """The true q(c|y) of two equally likely shifts, 0 and 2."""

    def forward(self, x, y):
        return F.logsigmoid((2 * y - 1) * (2 * x[:, 0] - 2))

    def pairwise(self, x, y):
        return F.logsigmoid((2 * y - 1) * (2 * x - 2))


def conditioned(n: int, discrete: bool):
    torch.manual_seed(0)
    c = torch.randint(2, (n,)) if discrete else torch.randn(n, 1)
    shift = 2.0 * c[:, None] if discrete else 2 * c
    u = torch.randn(n, 1)
    v = 0.8 * u + 0.6 * torch.randn(n, 1)
    return torch.cat([u + shift, shift], 1), v + shift, c


def test_conditional_infonce_by_groups_by_weights_and_by_kernels():
    truth = -0.5 * math.log(1 - 0.8**2)
    for kind in ("same", "weights", "kernel"):
        x, y, c = conditioned(1500, kind != "kernel")
        if kind == "kernel":
            x = torch.cat([x[:, :1], 2 * c], 1)
        classifier = Shifts(1, 2) if kind == "weights" else None
        objective = mi.ConditionalInfoNCE(Given(), classifier, width=0.05)
        found = objective.information(x, y, c)
        assert found.item() == pytest.approx(truth, abs=0.08), kind
        terms = objective.pointwise(x, y, c)
        assert terms.mean().item() == pytest.approx(found.item(), abs=1e-5)
    with pytest.raises(ValueError, match="integer conditions"):
        mi.ConditionalInfoNCE(Given(), Shifts(1, 2)).loss(x, y, c)


def test_weights_of_a_condition_average_to_one():
    """Uniform weights are plain InfoNCE; the classifier learns, the encoder does not feel it."""
    torch.manual_seed(0)
    x, y, c = torch.randn(8, 2), torch.randn(8, 2, requires_grad=True), torch.arange(8) % 2
    critic, classifier = critics.BilinearCritic(2, 2), critics.CategoricalDecoder(2, 2, 4)
    for p in classifier.parameters():
        p.data.zero_()
    objective = mi.ConditionalInfoNCE(critic, classifier)
    plain = mi.functional.infonce(critic.pairwise(x, y))
    torch.testing.assert_close(objective.information(x, y, c), plain)
    for p in classifier.parameters():
        torch.nn.init.normal_(p)
    (given,) = torch.autograd.grad(objective.loss(x, y, c), y)
    (alone,) = torch.autograd.grad(-objective.information(x, y, c), y)
    torch.testing.assert_close(given, alone)
    objective.loss(x, y.detach(), c).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in classifier.parameters()) or (
        classifier.network[-1].bias.grad is not None
    )


def test_chain_rule_by_two_decoders():
    """Y = X + C + N(0, ½²): I(X; Y | C) = ½ log(1 + 4)."""
    torch.manual_seed(0)
    chain = mi.ConditionalBarberAgakov(
        critics.GaussianDecoder(2, 1, 32), critics.GaussianDecoder(1, 1, 32)
    )

    def batch(n):
        x, c = torch.randn(n, 1), torch.randn(n, 1)
        return x, x + c + 0.5 * torch.randn(n, 1), c

    fit(chain.parameters(), lambda _: chain.loss(*batch(256)), 400, 3e-3)
    x, y, c = batch(20_000)
    assert chain.information(x, y, c).item() == pytest.approx(0.5 * math.log(5), abs=0.04)
    assert chain.pointwise(x, y, c).shape == (20_000,)
    keep = torch.arange(20_000) < 9000
    y[~keep] = math.nan
    assert chain.information(x, y, c, mask=keep).item() == pytest.approx(0.805, abs=0.05)


def test_orthogonal_split_loses_and_stretches_nothing():
    torch.manual_seed(0)
    split = mi.OrthogonalSplit(5, 2)
    z = torch.randn(50, 5)
    first, rest = split(z)
    assert first.shape == (50, 2) and rest.shape == (50, 3)
    lengths = first.square().sum(1) + rest.square().sum(1)
    torch.testing.assert_close(lengths, z.square().sum(1))
    target = z @ torch.linalg.qr(torch.randn(5, 2)).Q  # what the first part is trained to hold
    fit(split.parameters(), lambda _: (split(z)[0] - target).square().mean(), 400, 2e-2)
    first, rest = split(z)
    torch.testing.assert_close(first, target, atol=0.02, rtol=0.02)
    lengths = first.square().sum(1) + rest.square().sum(1)
    torch.testing.assert_close(lengths, z.square().sum(1))
    with pytest.raises(ValueError, match="0 < kept < 5"):
        mi.OrthogonalSplit(5, 5)


class LinearCode(mi.InformationBottleneck):
    """Mean 2x, deviation 1: I(B; X) = ½ log 5 for x of N(0, 1)."""

    def encode(self, x):
        return 2 * x, torch.ones_like(x)


def test_rate_is_an_upper_bound_that_learnt_priors_close():
    truth = 0.5 * math.log(5)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    for prior in ("normal", "learned", "vamp"):
        torch.manual_seed(0)
        code = LinearCode(1, 1, critics.GaussianDecoder(1, 1, 8), prior=prior)
        if prior == "normal":
            assert code.rate(x).item() == pytest.approx(0.5 * 4, abs=0.1)
            continue
        fit(
            [p for p in code.parameters() if p.requires_grad],
            lambda _, k=code: k.rate(x),
            150,
            0.05,
        )
        rate = sum(code.rate(x).item() for _ in range(10)) / 10
        assert rate == pytest.approx(truth, abs=0.06), prior
    with pytest.raises(ValueError, match="normal, learned or vamp"):
        mi.InformationBottleneck(1, 1, critics.GaussianDecoder(1, 1), prior="flat")  # type: ignore[arg-type]


def test_bottleneck_forgets_what_is_dear_and_keeps_what_is_cheap():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator)
    y = x[:, :1]
    told = {}
    for beta in (1e-3, 30.0):
        torch.manual_seed(0)
        code = mi.InformationBottleneck(3, 2, critics.GaussianDecoder(2, 1, 32), beta, hidden=32)
        fit(code.parameters(), lambda _, k=code: k.loss(x, y), 300)
        told[beta] = code.rate(x).item(), code.distortion(x, y).item()
    assert told[30.0][0] < 0.05 and told[30.0][1] == pytest.approx(1.42, abs=0.1)  # h(Y)
    assert told[1e-3][1] < 0.3


def test_factorized_information_of_equally_correlated_gaussians():
    rho, n = 0.6, 1200
    torch.manual_seed(0)
    covariance = rho + (1 - rho) * torch.eye(4)
    z = torch.randn(n, 4) @ torch.linalg.cholesky(covariance).T
    xs = list(z.split(1, 1))

    def make(d, e):
        return neural.DonskerVaradhan(Ratio(d, rho))

    pair = -0.5 * math.log(1 - rho**2)
    total = -0.5 * torch.logdet(covariance).item()
    for margins, count, truth in (
        ("pairs", 6, pair),
        ("cross", 4, pair),
        ([(0, 1, 2, 3)], 1, total),
        ([(0, 1), (0, 1, 2, 3)], 2, (pair + total) / 2),
    ):
        object_ = mi.FactorizedInformation([1] * 4, margins, make)
        assert object_.each(xs).shape == (count,)
        assert object_.bound(xs).item() == pytest.approx(truth, abs=0.1)
        assert object_.pointwise(xs).mean().item() == pytest.approx(
            object_.bound(xs).item(), abs=1e-4
        )
    for margins in ("none", [(0, 7)], []):
        with pytest.raises(ValueError, match="margins of at least 2 of 4"):
            mi.FactorizedInformation([1] * 4, margins, make)  # type: ignore[arg-type]


def test_pairwise_upper_bounds_push_views_apart():
    """Two codes of one input: held down by CLUB they stop telling about each other."""
    torch.manual_seed(0)
    mix = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        mix.weight.copy_(torch.tensor([[1.0, 0.3], [1.0, -0.3]]))
    apart = mi.FactorizedInformation(
        [1, 1], "pairs", lambda d, e: neural.CLUB(critics.GaussianDecoder(d, e, 32))
    )
    inner = torch.optim.Adam(apart.parameters(), 1e-2)

    def codes():
        z = mix(torch.randn(256, 2)) + 0.1 * torch.randn(256, 2)
        return list((z / z.std(0)).split(1, 1))

    with pytest.raises(ValueError, match="maximising an upper bound"):
        apart.bound(codes())
    outer = torch.optim.Adam(mix.parameters(), 1e-2)
    before = mi.gaussian_mi(*codes()).item()
    for _ in range(300):
        inner.zero_grad()
        apart.loss([c.detach() for c in codes()]).backward()
        inner.step()
        outer.zero_grad()
        apart.bound(codes(), minimize=True).backward()
        outer.step()
    rho = 0.91 / 1.1  # of a ± 0.3 b + 0.1 noise
    assert before == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.15)
    assert mi.gaussian_mi(*codes()).item() < 0.1


@pytest.mark.parametrize("kind", ["spectral", "penalty", "predictive"])
def test_wasserstein_dependency_of_a_binary_channel(kind):
    """Signs ±1, flipped with probability p: mass (1 - 2p)/2 moves by 2, the distance is 1 - 2p."""
    torch.manual_seed(0)
    flip = 0.1

    def batch(n, p=flip):
        x = torch.randint(2, (n, 1)) * 2.0 - 1
        return x, torch.where(torch.rand(n, 1) < p, -x, x)

    lipschitz = critics.LipschitzCritic(1, 1, 32)
    critic = lipschitz if kind == "spectral" else critics.ConcatCritic(1, 1, 32)
    objective = mi.WassersteinDependency(critic, predictive=kind == "predictive")

    def loss(_):
        x, y = batch(256)
        return objective.loss(x, y, negatives=y[negatives.shuffled(256, 4)])

    fit(objective.parameters(), loss, 300, 3e-3)
    signs = torch.tensor([[-1.0], [1.0]])
    f = objective.eval().critic.pairwise(signs, signs)
    joint = torch.tensor([[1 - flip, flip], [flip, 1 - flip]]) / 2
    value = ((joint - 0.25) * f).sum().item()  # of the distributions themselves
    # The penalty is soft; predictive coding maximises another functional of the same critics.
    tolerance = {"spectral": 0.05, "penalty": 0.1, "predictive": 0.3}[kind]
    assert value == pytest.approx(1 - 2 * flip, abs=tolerance)
    assert kind != "spectral" or value <= 1 - 2 * flip + 0.01
    x, y = batch(400)
    found = objective.pointwise(x, y).mean().item()
    assert found == pytest.approx(objective.bound(x, y).item(), abs=1e-4)
    assert found == pytest.approx(value, abs=0.15)  # 4 standard errors
    assert abs(objective.bound(*batch(400, 0.5)).item()) < 0.15


def test_shortest_combination_of_gradients():
    g = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert mi.min_norm_weights(g).tolist() == pytest.approx([0.8, 0.2], abs=1e-6)
    assert mi.min_norm_weights(torch.tensor([[1.0, 0.0], [3.0, 0.1]])).tolist() == [1.0, 0.0]
    torch.manual_seed(0)
    g = torch.randn(3, 5)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 101)] * 2)
    grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], 1)
    grid = grid[grid[:, 2] >= 0]
    best = (grid @ g).norm(dim=1).min()
    w = mi.min_norm_weights(g)
    assert w.sum().item() == pytest.approx(1, abs=1e-5) and (w >= 0).all()
    assert (w @ g).norm() <= best + 1e-4


def test_mgda_lets_no_loss_rise():
    theta = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
    unused = torch.nn.Parameter(torch.zeros(2))
    goals = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scale = torch.tensor([1.0, 100.0])

    def losses():
        return [s * (theta - g).square().sum() for s, g in zip(scale, goals, strict=True)]

    now = losses()
    weights = mi.mgda(now, [theta, unused])
    (weights * torch.stack(now)).sum().backward()
    with torch.no_grad():
        theta -= 1e-3 * theta.grad
    assert all(after < before for after, before in zip(losses(), now, strict=True))
    with torch.no_grad():
        theta.copy_(0.5 * goals.sum(0))  # Pareto-stationary
    now = losses()
    theta.grad = None
    (mi.mgda(now, [theta]) * torch.stack(now)).sum().backward()
    assert theta.grad.norm() < 1e-5


def test_bilevel_search_takes_the_best_score():
    best, scores = mi.bilevel_search([0.1, 0.5, 1.0], lambda lam: lam**2, lambda v: -abs(v - 0.3))
    assert best == 0.5 and scores[1.0] == pytest.approx(-0.7)
    with pytest.raises(ValueError, match="at least one"):
        mi.bilevel_search([], float, float)


def test_negatives_are_others():
    generator = torch.Generator().manual_seed(0)
    rows = negatives.shuffled(5, 4000, generator=generator)
    assert (rows != torch.arange(5)[:, None]).all()
    share = torch.stack([(rows[0] == j).float().mean() for j in range(1, 5)])
    assert share.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    condition = torch.tensor([3, 1, 3, 7, 3, 1])
    rows, alone = negatives.same_condition(condition, 3000, generator)
    assert alone.all(1).tolist() == [False, False, False, True, False, False]
    assert not alone[:3].any()
    kept = ~alone
    assert (condition[rows] == condition[:, None])[kept].all()
    assert (rows != torch.arange(6)[:, None])[kept].all()
    assert (rows[0] == 2).float().mean().item() == pytest.approx(0.5, abs=0.04)
    z = torch.tensor([[0.0], [0.1], [5.0], [5.2], [9.0]])
    assert negatives.nearest_condition(z, 1, chunk=2)[:, 0].tolist() == [1, 0, 3, 2, 3]
    assert negatives.nearest_condition(z, 2)[2].tolist() == [3, 4]
    with pytest.raises(ValueError, match="1 <= count < 5"):
        negatives.nearest_condition(z, 5)
    y = torch.randn(4000, 2, generator=generator)
    noisy = negatives.perturbed(y, 3, torch.tensor([0.5, 0.0]), generator)
    moved = noisy - y[:, None]
    assert moved[..., 1].abs().max() == 0
    assert moved[..., 0].std().item() == pytest.approx(0.5, abs=0.02)


def test_erasure_leaves_nothing_linear_and_the_rest():
    torch.manual_seed(0)
    y = torch.randn(400, 1)
    x = torch.randn(400, 3) @ torch.randn(3, 3) + y * torch.tensor([1.0, 2.0, 0.0])
    rest = mi.functional.linear_erasure(x, y)
    cross = (rest - rest.mean(0)).T @ (y - y.mean()) / 400
    assert cross.abs().max() < 1e-4
    # Theorem 4.3 of Belrose et al.: E‖change‖² is tr Σ_xy⁺-norm, here |Σ_xy|² / (Σ_xy' Σ⁻¹ Σ_xy)…
    centred = x - x.mean(0)
    moment, c = centred.T @ centred / 400, centred.T @ (y - y.mean()) / 400
    change = (x - rest).square().sum(1).mean()
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.sqrt() @ vectors.T
    u = torch.linalg.solve(root, c)
    expected = (root @ u).square().sum() / u.square().sum()
    assert change.item() == pytest.approx(expected.item(), rel=1e-3)


def test_kernel_correlations_see_what_linear_ones_do_not():
    torch.manual_seed(0)
    x, noise = torch.randn(2, 200, 1)
    square = x**2 + 0.1 * noise
    dependent, none = mi.functional.kernel_cca(x, square), mi.functional.kernel_cca(x, noise)
    assert dependent > 4 * none > 0
    assert mi.gaussian_mi(x, square) < 0.1
    moved = mi.functional.kernel_cca(square, x)
    assert moved.item() == pytest.approx(dependent.item(), rel=1e-3)


def test_groups_of_the_elbo():
    torch.manual_seed(0)
    mean, std = torch.randn(16, 4), torch.rand(16, 4) + 0.2
    z = mean + std * torch.randn(16, 4)
    each, paired, all_ = (
        mi.functional.elbo_terms(z, mean, std, 100, g) for g in (None, [2, 2], [4])
    )
    torch.testing.assert_close(each.information, paired.information)
    torch.testing.assert_close(sum(each), sum(paired))
    torch.testing.assert_close(all_.total_correlation, torch.zeros(()))
    again = mi.functional.elbo_terms(z, mean, std, 100, [1, 1, 1, 1])
    torch.testing.assert_close(again.total_correlation, each.total_correlation)
    # A pair's own density, by hand.
    log_q = torch.distributions.Normal(mean, std).log_prob(z[:, None]).view(16, 16, 2, 2).sum(-1)
    size = math.log(16 * 100)
    expected = (log_q.sum(-1).logsumexp(1) - size) - (log_q.logsumexp(1) - size).sum(-1)
    torch.testing.assert_close(paired.total_correlation, expected.mean())


def cases():
    """Name -> (objective, arguments of its loss), small; x has gradients."""
    torch.manual_seed(0)
    n, d = 12, 4
    x, y, z = torch.randn(3, n, d).unbind()
    x.requires_grad_()
    label = torch.arange(n) % 3
    gaussian = critics.GaussianDecoder(d, d, 16)
    classes = critics.CategoricalDecoder(d, 3, 16)
    slots = torch.randn(n, 3, d)
    linear = torch.nn.Linear(d, 8)
    return {
        "generated": (mi.GeneratedNegatives(), (x, y, slots)),
        "clustered": (mi.ClusteredPositives(d, d), (x, y, label)),
        "momentum": (mi.MomentumContrast(linear, linear, 8, 24, softness=0.3), (x, y)),
        "views": (mi.MultiViewInfoNCE([("a", "b"), ("b", "c")]), ({"a": x, "b": y, "c": z},)),
        "matching": (
            mi.PairMatching(critics.RelationCritic(d, 16), 1.0),
            (x, y, -((x @ y.T) ** 2)),
        ),
        "slots": (
            mi.Slotwise(neural.InfoNCE(critics.SeparableCritic(d, d, 16, 8))),
            (slots + x[:, None], slots),
        ),
        "classes": (mi.ClassInfoNCE(3, torch.tensor([0.5, 0.3, 0.2]).log()), (x, label, y, label)),
        "infomax": (mi.DiscreteInfoMax(0.5), (x, label - 1)),
        "adversarial": (mi.AdversarialBarberAgakov(classes, -1.1), (label, x, y)),
        "score": (mi.ScoreFunctionBarberAgakov(classes, -1.1), (label, y, x.log_softmax(-1)[:, 0])),
        "conditional": (
            mi.ConditionalInfoNCE(critics.BilinearCritic(d, d), classes),
            (x, y, label),
        ),
        "kernel": (mi.ConditionalInfoNCE(critics.ConcatCritic(d, d, 16)), (x, y, z)),
        "chain": (
            mi.ConditionalBarberAgakov(critics.MixtureDecoder(2 * d, d, 3, 16), gaussian),
            (x, y, z),
        ),
        "bottleneck": (
            mi.InformationBottleneck(d, 3, critics.GaussianDecoder(3, d, 16), prior="vamp"),
            (x, y),
        ),
        "empowerment": (
            mi.VariationalEmpowerment(critics.FlowDecoder(2 * d, d, 2, 16)),
            (x, y, z),
        ),
        "factorized": (
            mi.FactorizedInformation([d] * 3, "pairs", lambda a, b: neural.CLUB(gaussian)),
            ([x, y, z],),
        ),
        "wasserstein": (mi.WassersteinDependency(critics.LipschitzCritic(d, d, 16)), (x, y)),
        "penalty": (mi.WassersteinDependency(critics.ConcatCritic(d, d, 16)), (x, y)),
        "tre": (neural.LEARNT["tre"][1](d, d), (x, y)),
        **{
            name: (neural.LEARNT[name][1](d, d), (x, y))
            for name in ("mine", "ialpha", "flo", "fdime", "l1out", "ndoe")
        },
        "direction": (
            mi.VonMisesFisherDiscriminator(d, d, 16),
            (x, x, F.normalize(y, dim=-1)),
        ),
    }


def call(objective, arguments):
    loss = getattr(objective, "decoder_loss", None) or objective.loss
    return loss(*arguments)


def loss_of(objective, arguments):
    torch.manual_seed(1)
    return call(objective, arguments)


def test_objectives_under_autocast():
    """Finite, in float32, and near the loss in full precision where no noise is drawn."""
    whole = {name: loss_of(*case).item() for name, case in cases().items()}
    for name, case in cases().items():
        with torch.autocast("cpu", torch.bfloat16):
            low = loss_of(*case)
        assert low.dtype == torch.float32, name
        drawn = name in ("bottleneck", "matching")
        assert low.item() == pytest.approx(whole[name], rel=0.05, abs=9 if drawn else 0.1), name
        learnt = [p for p in case[0].parameters() if p.requires_grad]
        grads = torch.autograd.grad(low, learnt, allow_unused=True) if learnt else ()
        assert all(torch.isfinite(g).all() for g in grads if g is not None), name


@pytest.mark.full
@pytest.mark.parametrize("name", list(cases()))
def test_objectives_compile(name):
    torch.compiler.reset()
    objective, arguments = cases()[name]
    whole = loss_of(objective, arguments)
    objective, arguments = cases()[name]
    # The penalty takes a gradient inside, at which a graph ends.
    compiled = torch.compile(call, backend="aot_eager", fullgraph=name != "penalty")
    torch.manual_seed(1)  # no graph holds this
    torch.testing.assert_close(compiled(objective, arguments), whole, atol=1e-4, rtol=1e-4)


def test_rewards_carry_no_gradient_and_state_is_whole():
    """What a checkpoint holds of an objective makes its next loss, bit for bit."""
    for name, (objective, arguments) in cases().items():
        loss_of(objective, arguments)  # moves queues, averages, baselines
        if name != "adversarial" and hasattr(objective, "pointwise"):
            args = arguments if name not in ("score", "matching", "infomax") else arguments[:2]
            args = args[:1] if name == "infomax" else args
            args = (*args, 0.0) if name == "empowerment" else args
            assert not objective.pointwise(*args).requires_grad, name
        fresh = cases()[name][0]
        fresh.load_state_dict(objective.state_dict())
        assert torch.equal(loss_of(fresh, arguments), loss_of(objective, arguments)), name

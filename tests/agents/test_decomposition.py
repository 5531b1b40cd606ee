"""Mixers, targets, K-means and role networks, by hand."""

import itertools
import types

import gymnasium as gym
import pytest
import torch
from torch.nn import functional

from agents.core.cluster import kmeans
from agents.core.config import ConfigError
from agents.core.decomposition import (
    Independent,
    QMix,
    Recurrent,
    Sum,
    greedy,
    lambda_returns,
    previous_actions,
    team_sizes,
)
from agents.core.roles import Roles, StateAttention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- targets


def test_lambda_returns_by_hand():
    reward = torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
    following = torch.tensor([[[10.0]], [[20.0]], [[30.0]]])
    going, cut = torch.tensor([[1.0], [1.0], [0.0]]), torch.zeros(3, 1, dtype=torch.bool)
    one = lambda_returns(reward, following, going, cut, 0.5, 0.0)
    assert one.flatten().tolist() == [6.0, 12.0, 3.0]
    half = lambda_returns(reward, following, going, cut, 0.5, 0.5)
    assert half.flatten().tolist() == [5.4375, 7.75, 3.0]
    whole = lambda_returns(reward, following, going, cut, 0.5, 1.0)
    assert whole.flatten().tolist() == [2.75, 3.5, 3.0]  # the return alone
    # What was cut off tells nothing: the step before takes the value.
    cut[2], going[2] = True, 1.0
    half = lambda_returns(reward, following, going, cut, 0.5, 0.5)
    assert half.flatten()[:2].tolist() == [1 + 0.5 * (5 + 6), 12.0]


def test_previous_actions_are_zero_before_the_first():
    action = torch.tensor([[[2]], [[0]], [[1]]])
    assert previous_actions(action, 3)[:, 0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert previous_actions(action, 3, 2)[:, 0, 0].tolist() == [[0] * 3, [0] * 3, [0, 0, 1]]
    assert previous_actions(action[:1], 3, 2)[:, 0, 0].tolist() == [[0] * 3]


def test_greedy_takes_the_best_that_is_available():
    q = torch.tensor([[5.0, 1.0, 3.0]])
    assert greedy(q, torch.tensor([[True, True, True]])).item() == 0
    assert greedy(q, torch.tensor([[False, True, True]])).item() == 2
    assert greedy(-q, torch.tensor([[True, False, False]])).item() == 0


# ---- mixers


def test_sum_and_independent():
    q, state = torch.randn(2, 3, 4), torch.zeros(2, 3, 0)
    torch.testing.assert_close(Sum()(q, state)[..., 0], q.sum(-1))
    assert Independent()(q, state) is q


def test_qmix_by_hand():
    mixer = QMix(agents=2, condition=1, embedding=1, hidden=1)
    for parameter in mixer.parameters():
        parameter.data.zero_()
    mixer.weight_1[2].bias.data = torch.tensor([2.0, -3.0])  # their sizes count: 2 and 3
    mixer.bias_1.bias.data.fill_(0.5)
    mixer.weight_2[2].bias.data.fill_(-4.0)
    mixer.bias_2[2].bias.data.fill_(7.0)
    total = mixer(torch.tensor([[[1.0, 1.0]]]), torch.zeros(1, 1, 1))
    assert total.item() == pytest.approx(4 * (2 + 3 + 0.5) + 7)
    total = mixer(torch.tensor([[[-1.0, 0.0]]]), torch.zeros(1, 1, 1))
    assert total.item() == pytest.approx(4 * torch.expm1(torch.tensor(-1.5)).item() + 7)


def test_qmix_is_monotonic_whatever_the_condition():
    torch.manual_seed(0)
    mixer = QMix(agents=4, condition=6)
    q = torch.randn(64, 5, 4, requires_grad=True)
    mixer(q, 10 * torch.randn(64, 5, 6)).sum().backward()
    assert (q.grad >= 0).all()
    assert (q.grad > 0).float().mean() > 0.9
    # The best joint action is each agent's own best.
    table, condition = torch.randn(3, 4), torch.randn(6)
    joint = list(itertools.product(range(3), repeat=4))
    values = [
        mixer(table.T[range(4), torch.tensor(a)][None, None], condition[None, None]).item()
        for a in joint
    ]
    assert joint[values.index(max(values))] == tuple(table.argmax(0).tolist())


def test_recurrent_step_by_step_equals_the_whole_sequence():
    torch.manual_seed(0)
    network = Recurrent(3, 5)
    x = torch.randn(4, 2, 3, 3)  # [T, B, A, D]
    hidden, steps = torch.zeros(2, 3, 5), []
    for t in range(4):
        out = network(x[t : t + 1], hidden)
        steps.append(out)
        hidden = out[-1]
    torch.testing.assert_close(torch.cat(steps), network(x))


def test_recurrent_forgets_where_an_episode_begins():
    torch.manual_seed(0)
    network = Recurrent(3, 5)
    x, hidden = torch.randn(4, 2, 3, 3), torch.randn(2, 3, 5)
    starts = torch.tensor([[False, True], [False, False], [True, False], [False, False]])
    out = network(x, hidden, starts)
    torch.testing.assert_close(out[:2, 0], network(x[:2, :1], hidden[:1])[:, 0])
    torch.testing.assert_close(out[2:, 0], network(x[2:, :1])[:, 0])
    torch.testing.assert_close(out[:, 1], network(x[:, 1:])[:, 0])


# ---- clusters


def test_kmeans_finds_what_is_apart():
    torch.manual_seed(0)
    centres = 100 * torch.randn(6, 3, 8)
    truth = torch.arange(12).expand(6, -1) % 3
    x = centres.gather(1, truth[..., None].expand(-1, -1, 8)) + torch.randn(6, 12, 8)
    label = kmeans(x, 3, generator())
    same, expected = (v[..., None] == v[..., None, :] for v in (label, truth))
    assert torch.equal(same, expected)


def test_kmeans_ends_where_every_point_is_nearest_to_its_own_mean():
    torch.manual_seed(0)
    x = torch.randn(50, 9, 4)
    label = kmeans(x, 3, generator(), iterations=30)
    member = functional.one_hot(label, 3).float()
    size = member.sum(1)
    means = member.mT @ x / size.clamp_min(1)[..., None]
    distance = torch.cdist(x, means).masked_fill(size[:, None] == 0, torch.inf)
    own = distance.gather(2, label[..., None])[..., 0]
    torch.testing.assert_close(own, distance.amin(-1))
    assert (size > 0).all()


def test_kmeans_is_about_as_good_as_scikit_learn():
    sklearn = pytest.importorskip("sklearn.cluster")
    torch.manual_seed(0)
    x = torch.randn(100, 8, 16)

    def inertia(label):
        member = functional.one_hot(label, 3).float()
        means = member.mT @ x / member.sum(1).clamp_min(1)[..., None]
        return (x - means.gather(1, label[..., None].expand_as(x))).square().sum()

    theirs = torch.stack([
        torch.from_numpy(sklearn.KMeans(3, n_init=1, random_state=0).fit(p.numpy()).labels_).long()
        for p in x
    ])  # fmt: skip
    assert inertia(kmeans(x, 3, generator())) < 1.05 * inertia(theirs)


def test_kmeans_clamps_to_the_points_that_count():
    x = torch.tensor([[[0.0], [5.0], [9.0], [1e3]]]).expand(20, -1, -1)
    label = kmeans(x[:, :2], 5, generator())
    assert (label[:, 0] != label[:, 1]).all()  # two points, two clusters
    mask = torch.tensor([True, True, False, False]).expand(20, -1)
    label = kmeans(x, 3, generator(), mask)
    assert (label[:, 0] != label[:, 1]).all()
    assert (label[:, 2:] == 0).all()
    none = kmeans(x, 3, generator(), torch.zeros_like(mask))
    assert (none == 0).all()


def test_points_that_do_not_count_change_nothing():
    torch.manual_seed(0)
    x, mask = torch.randn(40, 7, 3), torch.rand(40, 7) < 0.6
    label = kmeans(x, 3, generator(), mask)
    moved = torch.where(mask[..., None], x, x + 100)
    assert torch.equal(label, kmeans(moved, 3, generator(), mask))


def test_kmeans_refuses_no_clusters():
    with pytest.raises(ValueError, match="clusters=0"):
        kmeans(torch.zeros(2, 1), 0, generator())


# ---- roles


def reference(roles, embedding, counts, cluster):
    """ACORM's equation 4, term by term, averaged over the anchors."""
    terms = []
    for b, t, i in itertools.product(*map(range, counts.shape)):
        if not counts[b, t, i]:
            continue
        alive = [j for j in range(counts.shape[2]) if counts[b, t, j]]
        score = {
            j: roles.encoder(embedding[b, t, i])
            @ roles.contrast.critic.weight
            @ roles.key_encoder(embedding[b, t, j]).detach()
            for j in alive
        }
        positive = sum(score[j].exp() for j in alive if cluster[b, t, j] == cluster[b, t, i])
        terms.append(-(positive / sum(s.exp() for s in score.values())).log())
    return torch.stack(terms).mean()


def test_contrastive_loss_has_the_gradient_of_the_paper():
    torch.manual_seed(0)
    roles = Roles(inputs=3, embedding=6, role=4, targets=2)
    for parameter in roles.key_encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    embedding = torch.randn(2, 3, 5, 6)
    counts = torch.rand(2, 3, 5) < 0.8
    watched = [*roles.encoder.parameters(), *roles.contrast.parameters()]
    loss = roles.contrastive_loss(embedding, counts, 2, generator())
    found = torch.autograd.grad(loss, watched)
    cluster = kmeans(embedding, 2, generator(), counts)
    expected = torch.autograd.grad(reference(roles, embedding, counts, cluster), watched)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_dead_have_no_part_in_the_contrastive_loss():
    torch.manual_seed(0)
    roles = Roles(3, 6, 4, 2)
    embedding, counts = torch.randn(2, 4, 5, 6), torch.rand(2, 4, 5) < 0.6
    loss = roles.contrastive_loss(embedding, counts, 2, generator())
    moved = torch.where(counts[..., None], embedding, embedding + 10)
    torch.testing.assert_close(loss, roles.contrastive_loss(moved, counts, 2, generator()))
    everyone = torch.ones_like(counts)
    assert loss != roles.contrastive_loss(embedding, everyone, 2, generator())
    nobody = roles.contrastive_loss(embedding, ~everyone, 2, generator())
    assert torch.isfinite(nobody)


def test_contrast_makes_roles_of_a_cluster_agree():
    torch.manual_seed(0)
    roles = Roles(3, 6, 8, 2)
    kind = torch.randint(2, (8, 10, 6))
    embedding = torch.eye(2)[kind] @ (3 * torch.randn(2, 6)) + 0.3 * torch.randn(8, 10, 6, 6)
    counts = torch.ones_like(kind, dtype=torch.bool)
    optimizer = torch.optim.Adam([*roles.encoder.parameters(), *roles.contrast.parameters()], 1e-2)

    def agreement():
        z = roles.encoder(embedding).detach()
        distance = torch.cdist(z, z)
        same = kind[..., None] == kind[..., None, :]
        return (distance[~same].mean() / distance[same].mean()).item()

    before = agreement()
    for _ in range(100):
        loss = roles.contrastive_loss(embedding, counts, 2, generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        roles.follow(0.05)
    assert agreement() > 1.5 * before


def test_clusters_across_the_batch_compare_episodes_at_the_same_time():
    torch.manual_seed(0)
    roles = Roles(3, 6, 4, 2)
    embedding, counts = torch.randn(2, 3, 2, 6), torch.ones(2, 3, 2, dtype=torch.bool)
    loss = roles.contrastive_loss(embedding, counts, 3, generator(), across="batch")
    joined, everyone = embedding.reshape(1, 2, 6, 6), counts.reshape(1, 2, 6)
    torch.testing.assert_close(loss, roles.contrastive_loss(joined, everyone, 3, generator()))


def test_the_key_encoder_follows_slowly():
    roles = Roles(3, 6, 4, 2)
    before = roles.key_encoder[0].weight.clone()
    roles.encoder[0].weight.data += 1
    roles.follow(0.25)
    torch.testing.assert_close(roles.key_encoder[0].weight, before + 0.25)


# ---- attention


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("reads", ["state", "history"])
def test_attention_is_the_mean_of_values_by_its_weights(small, reads):
    torch.manual_seed(0)
    net = StateAttention(7, 3, 5, small, reads, width=6, attention=8, heads=2)
    state, role = torch.randn(2, 4, 7), torch.randn(2, 4, 3, 5)
    condition = net(state, role)
    assert condition.shape == (2, 4, net.size)
    weights = net.weights(state, role)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 2, 3))
    value = net.value(role).unflatten(-1, (2, 4)).transpose(-3, -2)  # [2, 4, heads, A, 4]
    mixed = (weights @ value).transpose(-3, -2).flatten(-2)
    torch.testing.assert_close(condition[..., -18:], net.output(mixed).flatten(-2))
    first = functional.relu(net.state(state))
    first = first if reads == "state" else net.history(first)[0]
    torch.testing.assert_close(condition[..., :-18], first)


def test_the_small_history_does_not_grow_with_the_team():
    def size(agents, small):
        net = StateAttention(7, agents, 5, small, width=6, attention=8, heads=2)
        return sum(p.numel() for p in net.history.parameters())

    assert size(3, True) == size(9, True)
    assert size(9, False) > 3 * size(3, False)


def test_attention_sees_the_past_of_the_state():
    torch.manual_seed(0)
    net = StateAttention(7, 3, 5)
    state, role = torch.randn(3, 1, 7), torch.randn(3, 1, 3, 5)
    changed = state.clone()
    changed[0] += 1
    assert not torch.allclose(net.weights(state, role)[2], net.weights(changed, role)[2])


def test_the_small_attention_has_a_learnt_query_for_each_agent():
    attention = StateAttention(4, 3, 5, small=True)
    weights = attention.weights(torch.randn(2, 1, 4), torch.randn(2, 1, 3, 5))
    assert not torch.allclose(weights[..., 0, :], weights[..., 1, :])


def test_actions_that_do_not_begin_at_0_are_refused():
    env = types.SimpleNamespace(
        num_agents=2,
        single_observation_space=gym.spaces.Box(-1, 1, (2, 3)),
        single_action_space=gym.spaces.MultiDiscrete([3, 3], start=[1, 1]),
    )
    with pytest.raises(ConfigError, match="needs actions that begin at 0"):
        team_sizes(env, "acorm")

"""Probes and similarities, on representations whose content is known."""

import math

import pytest
import torch

from agents.core.representation import (
    edge_similarity,
    explained,
    linear_cka,
    linear_probe,
    mlp_probe,
    neighbour_overlap,
    rsa,
)


def data(n=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator)


def test_explained_by_hand():
    target = torch.tensor([[0.0, 5.0], [2.0, 5.0]])  # the second never varies
    assert explained(torch.tensor([[0.0, 9.0], [1.0, 9.0]]), target) == pytest.approx(0.5)
    assert explained(torch.ones(2, 2), target) == 0


def test_probes_find_what_is_there_and_nothing_else():
    state, other = data()
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    features = torch.cat([state @ turn, torch.randn(600, 4, generator=generator)], 1)
    split = [features[:400], state[:400], features[400:], state[400:]]
    assert linear_probe(*split) > 0.98
    assert mlp_probe(*split, steps=300) > 0.9
    assert linear_probe(features[:400], other[:400], features[400:], other[400:]) < 0.1
    assert mlp_probe(features[:400], other[:400], features[400:], other[400:], steps=300) < 0.1


def test_only_the_network_reads_a_circle():
    angle = torch.rand(1200, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    x, y = torch.stack([angle.cos(), angle.sin()], 1), (2 * angle).cos()[:, None]
    split = [x[:800], y[:800], x[800:], y[800:]]
    assert linear_probe(*split) < 0.1
    assert mlp_probe(*split, steps=500) > 0.9


def test_similarities_ignore_rotation_and_scale():
    state, other = data(200)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    same = 7 * state @ turn
    assert rsa(same, state) == pytest.approx(1, abs=1e-4)
    assert linear_cka(same, state) == pytest.approx(1, abs=1e-6)
    assert neighbour_overlap(same, state) == pytest.approx(1, abs=0.01)
    assert edge_similarity(same, state) == pytest.approx(1, abs=1e-4)
    assert abs(rsa(other, state)) < 0.1
    assert linear_cka(other, state) < 0.1
    assert neighbour_overlap(other, state) == pytest.approx(10 / 199, abs=0.05)
    assert edge_similarity(other, state) < 0.8

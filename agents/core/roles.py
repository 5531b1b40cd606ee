"""ACORM's networks: roles from what an agent has seen, and attention of the team's state on them.

Shape letters: T time, B episodes, A agents, E embedding size, Z role size, S state features.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.core.cluster import kmeans
from agents.core.decomposition import Recurrent, unroll
from mi import ClusteredPositives

Across = Literal["step", "batch"]


class Roles(nn.Module):
    """e = GRU(o, a before), z = f(e), and what the contrastive loss needs to shape z.

    Args:
        inputs: features that an agent sees, and that the embedding reads.
        embedding: E.
        role: Z.
        targets: features that the decoder predicts.
        bounded: one layer and a sigmoid (as on QMIX), or two layers (as on MAPPO).
        norm: roles pass a layer norm before that.

    Attributes:
        encoder: the role encoder f.
        key_encoder: the slow copy of it that the keys of the contrastive loss come from.
        contrast: InfoNCE of clusters, with the similarity zᵀ W k.
        decoder: what an embedding says about the next observation and about which agent it is.
    """

    def __init__(
        self,
        inputs: int,
        embedding: int,
        role: int,
        targets: int,
        bounded: bool = True,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.body, self.output = Recurrent(inputs, embedding), nn.Linear(embedding, embedding)
        hidden = [] if bounded else [nn.Linear(embedding, embedding), nn.ReLU()]
        layers: list[nn.Module] = [*hidden, nn.Linear(embedding, role)]
        layers += [nn.LayerNorm(role)] if norm else []
        layers += [nn.Sigmoid()] if bounded else []
        self.encoder = nn.Sequential(*layers)
        self.key_encoder = copy.deepcopy(self.encoder)
        self.contrast = ClusteredPositives(role, role)
        self.decoder = nn.Sequential(
            nn.Linear(embedding, embedding), nn.ReLU(), nn.Linear(embedding, targets)
        )

    def embed(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings e [T, B, A, E] of x [T, B, A, D], and what is remembered [B, A, E]."""
        memory = self.body(x, hidden)
        return self.output(memory), memory[-1]

    def contrastive_loss(
        self,
        embedding: Tensor,
        counts: Tensor,
        clusters: int,
        generator: torch.Generator,
        across: Across = "step",
        slow_keys: bool = True,
    ) -> Tensor:
        """-InfoNCE [nats] of roles within clusters of agents (ACORM, eq. 4), 0-d.

        A query is an agent's role, a key the slow encoder's, of every agent in the group; those in
        the same cluster are positives, their sum is inside the logarithm.

        Args:
            embedding: e [T, B, A, E]; what has a gradient is up to the caller.
            counts: bool [T, B, A], who takes part.
            clusters: K of K-means; fewer where fewer agents take part.
            generator: of K-means.
            across: a group is the agents of one step of one episode (the paper's), or those of the
                whole batch at one time.
            slow_keys: False lets the gradient into the keys.
        """
        assert embedding.shape[:-1] == counts.shape, (embedding.shape, counts.shape)
        if across == "batch":
            embedding, counts = embedding.flatten(1, 2), counts.flatten(1, 2)
        cluster = kmeans(embedding.detach(), clusters, generator, counts)
        with torch.set_grad_enabled(not slow_keys and torch.is_grad_enabled()):
            key = self.key_encoder(embedding)
        return self.contrast.loss(self.encoder(embedding), key, cluster, counts)

    def decoding_loss(self, embedding: Tensor, next_obs: Tensor, mask: Tensor) -> Tensor:
        """Squared error of the next observation and of who it is, 0-d; trains e before roles do.

        Args:
            embedding: e [T, B, A, E].
            next_obs: [T, B, A, D].
            mask: bool [T, B], steps that have a next one.
        """
        identity = torch.eye(next_obs.shape[-2], device=next_obs.device)
        identity = identity.expand(*next_obs.shape[:-1], -1)
        error = self.decoder(embedding) - torch.cat([next_obs, identity], -1)
        return (error.square().mean((-2, -1)) * mask).sum() / mask.sum().clamp_min(1)

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """θ_k ← (1 - rate) θ_k + rate θ for the key encoder."""
        for key, value in zip(
            self.key_encoder.parameters(), self.encoder.parameters(), strict=True
        ):
            key.lerp_(value, rate)


class StateAttention(nn.Module):
    """A mixer's condition [.., C]: the state, and what its history attends to among the roles.

    τ = GRU(state) makes A queries; keys and values are the roles.

    Args:
        states: S.
        agents: A.
        role: Z.
        small: τ has `width` features, to which A learnt vectors are added, in place of A `width`
            features: the cost of the GRU does not grow with A².
        reads: whether the condition is [ReLU(W s), attention], as published, or [τ, attention], as
            in the paper.
        width: of a query.
        attention: of all heads together.
        heads: of the attention.

    Attributes:
        size: C.
    """

    def __init__(
        self,
        states: int,
        agents: int,
        role: int,
        small: bool = False,
        reads: Literal["state", "history"] = "state",
        width: int = 64,
        attention: int = 128,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.agents, self.heads, self.reads = agents, heads, reads
        self.state = nn.Linear(states, states)
        history = width if small else agents * width
        self.history = nn.GRU(states, history)
        self.queries = nn.Parameter(torch.randn(agents, width)) if small else None
        self.query = nn.Linear(width, attention, bias=False)
        self.key = nn.Linear(role, attention, bias=False)
        self.value, self.output = nn.Linear(role, attention), nn.Linear(attention, width)
        self.size = (states if reads == "state" else history) + agents * width

    def forward(self, state: Tensor, role: Tensor) -> Tensor:
        """The condition [T, B, C] of states [T, B, S] and roles [T, B, A, Z]."""
        features = functional.relu(self.state(state))
        history = unroll(self.history, features)
        return self.condition(features if self.reads == "state" else history, history, role)

    def remember(
        self, state: Tensor, hidden: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """τ [T, B, H] of states [T, B, S]; see `unroll`."""
        return unroll(self.history, functional.relu(self.state(state)), hidden, starts)

    def condition(self, first: Tensor, history: Tensor, role: Tensor) -> Tensor:
        """`first` [T, B, ·] and what τ [T, B, H] attends to, [T, B, C]."""
        # Written out: on the CPU torch's own attention takes twice as long to differentiate.
        mixed = self._attend(history, role) @ self._heads(self.value(role))
        attended = self.output(mixed.transpose(-3, -2).flatten(-2)).flatten(-2)
        return torch.cat([first, attended], -1)

    def weights(self, state: Tensor, role: Tensor) -> Tensor:
        """How much each query attends to each agent's role, [T, B, heads, A, A]."""
        return self._attend(self.remember(state), role)

    def _attend(self, history: Tensor, role: Tensor) -> Tensor:
        if self.queries is None:
            queries = history.unflatten(-1, (self.agents, -1))
        else:
            queries = history[..., None, :] + self.queries
        query, key = self._heads(self.query(queries)), self._heads(self.key(role))
        return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        """[..., A, F] -> [..., heads, A, F / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

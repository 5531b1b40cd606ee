"""Contrastive objectives that differ in where positives and negatives come from.

All are `functional.infonce`: nats to maximise, so the loss is its negative. Embeddings come from
the agent's encoders; what is learnt here, if anything, is the similarity.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mi import functional as F
from mi.critics import BilinearCritic, Critic, full
from mi.functional import Reduction
from mi.neural import MIEstimator


class GeneratedNegatives(nn.Module):
    """InfoNCE against negatives made for each anchor: I(Z; task | condition), at most log(K + 1).

    What anchor, key and negatives have in common cannot tell them apart, so it is not learnt: where
    the negatives of a transition share its state and action, and differ in how another task would
    have gone on, the code is about the task and not about the behaviour. A lower bound of the
    conditional information as far as the negatives are distributed as p(y | condition). CORRO
    (Yuan & Lu 2022, eq. 5).

    Example, a code of the task that ignores who collected the data::

        code = encoder(s, a, r, s_next)                            # [B, d]
        same_task = encoder(s2, a2, r2, s2_next)                   # [B, d], the same tasks
        others = encoder(s, a, r_generated, s_generated)           # [B, K, d], the same (s, a)
        loss = objective.loss(code, same_task, others)

    Args:
        temperature: τ; similarities are divided by it.
        cosine: normalise the embeddings first.
    """

    def __init__(self, temperature: float = 0.1, cosine: bool = True) -> None:
        super().__init__()
        self.temperature, self.cosine = temperature, cosine

    def information(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor,
        *,
        exclude: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """InfoNCE [nats], 0-d or as `reduction` says; differentiable in all three.

        Args:
            query: anchors [*, B, d].
            key: a positive of each [*, B, d].
            negatives: of each [*, B, K, d].
            exclude: bool [*, B, K], negatives that happen to be true.
            mask: bool [*, B].
            weight: of the anchors [*, B].
            reduction: as in `mi.functional`.
        """
        if key.shape != query.shape or negatives.shape[:-2] != query.shape[:-1]:
            raise ValueError(
                "GeneratedNegatives: expected query and key [*, B, d] and negatives [*, B, K, d], "
                f"got {[tuple(v.shape) for v in (query, key, negatives)]}"
            )
        if self.cosine:
            query, key, negatives = (normalize(v, dim=-1) for v in (query, key, negatives))
        pos = (query * key).sum(-1)
        neg = (negatives @ query[..., None])[..., 0]
        return F.infonce(
            pos=pos / self.temperature, neg=neg / self.temperature, exclude=exclude, mask=mask,
            weight=weight, reduction=reduction,
        )  # fmt: skip

    def loss(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor,
        *,
        exclude: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """-`information`, 0-d."""
        return -self.information(query, key, negatives, exclude=exclude, mask=mask, weight=weight)

    @torch.no_grad()
    def pointwise(self, query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
        """Each anchor's term [*, B], detached."""
        return self.information(query, key, negatives, reduction="none")


class ClusteredPositives(nn.Module):
    """InfoNCE whose positives are the members of the anchor's cluster: I(role; cluster).

    The sum over positives is inside the logarithm; the anchor's own key is one of them, so that an
    agent alone in its cluster has a term too, and nobody has one where there is a single cluster.
    ACORM (Hu et al. 2024, eq. 4): similarity qᵀ W k with W learnt. Its loss is this one's up to the
    number of positives and candidates, which have no gradient.

    Example, roles that agree within clusters of agents::

        role, role_key = encoder(e), target_encoder(e)             # [B, T, A, Z]
        loss = objective.loss(role, role_key, cluster, mask=alive) # cluster int64 [B, T, A]

    Args:
        query_size: Z.
        key_size: size of the keys.
    """

    def __init__(self, query_size: int, key_size: int) -> None:
        super().__init__()
        self.critic = BilinearCritic(query_size, key_size)

    def information(
        self,
        query: Tensor,
        key: Tensor,
        cluster: Tensor,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """InfoNCE [nats], 0-d or as `reduction` says; differentiable in queries, keys and W.

        Args:
            query: [*, A, Z]; the A of one group are each other's candidates.
            key: [*, A, key_size]; of a momentum encoder, without gradient, in ACORM.
            cluster: int64 [*, A].
            mask: bool [*, A]: who takes part, as an anchor and as a candidate.
            weight: of the anchors [*, A].
            reduction: as in `mi.functional`.
        """
        if cluster.shape != query.shape[:-1] or key.shape[:-1] != query.shape[:-1]:
            raise ValueError(
                "ClusteredPositives: expected query [*, A, Z], key [*, A, K] and cluster [*, A], "
                f"got {[tuple(v.shape) for v in (query, key, cluster)]}"
            )
        scores = self.critic.pairwise(query, key)
        positives = ~F.other_condition(cluster)
        return F.infonce(
            scores, aggregate="sum_in", positives=positives, mask=mask, key_mask=mask,
            weight=weight, reduction=reduction,
        )  # fmt: skip

    def loss(
        self,
        query: Tensor,
        key: Tensor,
        cluster: Tensor,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """-`information`, 0-d."""
        return -self.information(query, key, cluster, mask, weight)

    @torch.no_grad()
    def pointwise(
        self, query: Tensor, key: Tensor, cluster: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Each agent's term [*, A], detached."""
        return self.information(query, key, cluster, mask, reduction="none")


class MomentumContrast(nn.Module):
    """Symmetric InfoNCE of views x and y with slow key encoders, old keys, and soft targets.

    He et al. 2020 (momentum, queue); Li et al. 2021, eq. 6 (ALBEF: targets are in part the slow
    encoders' own similarities). `loss` moves the slow encoders and the queue when gradients are on.
    A lower bound with `softness` 0.

    Example, representations of pixels (CURL: one encoder, two crops)::

        contrast = MomentumContrast(encoder, encoder, size=128)
        loss = contrast.loss(crop(obs), crop(obs))

    Args:
        encode_x: of x, [B, …] -> [B, size].
        encode_y: of y.
        size: of the embeddings.
        queue: old keys that are candidates, too; a multiple of the batch size.
        momentum: of the slow encoders.
        softness: α, share of the slow encoders' similarities in the targets.
        temperature: τ, of the cosine.
    """

    queue_x: Tensor
    queue_y: Tensor
    filled: Tensor

    def __init__(
        self,
        encode_x: nn.Module,
        encode_y: nn.Module,
        size: int,
        queue: int = 4096,
        momentum: float = 0.995,
        softness: float = 0.0,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([encode_x, encode_y])
        self.slow = copy.deepcopy(self.encoders).requires_grad_(False)
        self.momentum, self.softness, self.temperature = momentum, softness, temperature
        for name in ("queue_x", "queue_y"):
            self.register_buffer(name, torch.zeros(queue, size))
        self.register_buffer("filled", torch.zeros(queue, dtype=torch.bool))

    def information(self, x: Tensor, y: Tensor) -> Tensor:
        """InfoNCE [nats], 0-d, differentiable; without effect on the queue.

        Args:
            x: [B, …].
            y: [B, …].
        """
        return self._compare(x, y)[0]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """-`information`, 0-d; then, if gradients are on, the keys of the batch join the queue."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                pairs = zip(self.slow.parameters(), self.encoders.parameters(), strict=True)
                for slow, fast in pairs:
                    slow.lerp_(fast, 1 - self.momentum)
                for slow, fast in zip(self.slow.buffers(), self.encoders.buffers(), strict=True):
                    slow.copy_(fast)
        value, key_x, key_y = self._compare(x, y)
        if torch.is_grad_enabled() and len(self.filled):
            true = torch.ones(len(x), dtype=torch.bool, device=self.filled.device)
            for queue, new in ((self.queue_x, key_x), (self.queue_y, key_y), (self.filled, true)):
                queue.copy_(torch.cat([new, queue])[: len(queue)])
        return -value

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Each pair's term [B], detached."""
        return self._compare(x, y, "none")[0]

    def _compare(
        self, x: Tensor, y: Tensor, reduction: Reduction = "mean"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """InfoNCE in both directions, keys of x, keys of y."""
        encode_x, encode_y = self.encoders
        query_x, query_y = normalize(encode_x(x), dim=-1), normalize(encode_y(y), dim=-1)
        with torch.no_grad():
            key_x, key_y = (normalize(f(v), dim=-1) for f, v in zip(self.slow, (x, y), strict=True))
        there = torch.cat([torch.ones(len(x), dtype=torch.bool, device=x.device), self.filled])
        value = torch.zeros((), device=x.device)
        for query, slow_query, key, queue in (
            (query_x, key_x, key_y, self.queue_y),
            (query_y, key_y, key_x, self.queue_x),
        ):
            keys = torch.cat([key, queue])
            scores, targets = full(query @ keys.T) / self.temperature, None
            if self.softness:
                similar = (full(slow_query @ keys.T) / self.temperature).masked_fill(
                    ~there, -torch.inf
                )
                hard = torch.eye(*scores.shape, device=x.device)
                targets = torch.lerp(hard, similar.softmax(-1), self.softness)
            value = value + 0.5 * F.infonce(
                scores, targets=targets, key_mask=there, reduction=reduction
            )
        return value, key_x, key_y


class MultiViewInfoNCE(nn.Module):
    """Sum of symmetric InfoNCE over pairs of named views; without score matrices in memory.

    Example, sensors that should agree (each lower-bounds its pair's information)::

        objective = MultiViewInfoNCE([("camera", "touch"), ("camera", "joints")])
        loss = objective.loss({"camera": a, "touch": b, "joints": c})  # [B, d] each

    Args:
        pairs: names of views to align.
        temperature: τ, of the cosine.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], temperature: float = 0.1) -> None:
        super().__init__()
        self.pairs, self.temperature = tuple(pairs), temperature

    def information(self, views: Mapping[str, Tensor]) -> Tensor:
        """Σ InfoNCE [nats], 0-d; differentiable.

        Args:
            views: name -> embeddings [B, d]; row i of all views belongs together.
        """
        missing = sorted({name for pair in self.pairs for name in pair} - set(views))
        if missing:
            raise ValueError(f"MultiViewInfoNCE: no view {missing[0]!r}, only {sorted(views)}")
        return sum(
            (
                F.contrast(
                    views[a], views[b], temperature=self.temperature, cosine=True, symmetric=True
                )
                for a, b in self.pairs
            ),
            torch.zeros(()),
        )  # type: ignore[return-value]

    def loss(self, views: Mapping[str, Tensor]) -> Tensor:
        """-`information`, 0-d."""
        return -self.information(views)


class PairMatching(nn.Module):
    """A classifier of pairs that belong together against hard, mismatched ones: `functional.jsd`.

    Each anchor meets the candidate that `similarity` takes for its own most often, drawn by softmax
    (Li et al. 2021); without it, the next row. At even odds and with uniform negatives the logit
    is log p(y|x)/p(y); hard negatives and `focal` bend it, so that it ranks and does not measure.

    Example, do this goal and this state belong together::

        matching = PairMatching(RelationCritic(size))
        loss = matching.loss(state, goal, similarity=state @ goal.T)
        reward = matching.pointwise(state, goal)                   # a logit [B]

    Args:
        critic: f.
        focal: γ, weighs what is still wrong (Lin et al. 2017).
    """

    def __init__(self, critic: Critic, focal: float = 0.0) -> None:
        super().__init__()
        self.critic, self.focal = critic, focal

    def loss(self, x: Tensor, y: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of who belongs to whom, 0-d.

        Args:
            x: [B, d].
            y: [B, e].
            similarity: [B, B], logits for the choice of negatives of x and (transposed) of y.
        """
        if similarity is None:
            other_y, other_x = y.roll(1, 0), x.roll(-1, 0)
        else:
            other_y, other_x = y[_mistaken(similarity)], x[_mistaken(similarity.mT)]
        neg = torch.stack([self.critic(x, other_y), self.critic(other_x, y)], -1)
        return -F.jsd(pos=self.critic(x, y), neg=neg, focal=self.focal)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """The logit of each pair, [B], detached."""
        return self.critic(x, y)


@torch.no_grad()
def _mistaken(similarity: Tensor) -> Tensor:
    """A wrong column for each row [B], drawn by softmax of the others."""
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    share = similarity.float().masked_fill(own, -torch.inf).softmax(-1)
    return torch.multinomial(share, 1)[:, 0]


class Slotwise(nn.Module):
    """Any estimator between the slots of two samples: slot k of x belongs to slot k of y.

    The other slots of the same sample are the negatives, so that what all slots of a sample share
    tells nothing: agents, objects or factors become distinct (DGVAE with `neural.JSD`).

    Example, each agent's memory against its observation::

        slots = Slotwise(neural.InfoNCE(SeparableCritic(d, e)))
        loss = slots.loss(memory, observation)                     # [B, A, d], [B, A, e]

    Args:
        estimator: of `mi.neural`, with a critic.
    """

    def __init__(self, estimator: MIEstimator) -> None:
        super().__init__()
        self.estimator = estimator

    def _check(self, x: Tensor, y: Tensor) -> None:
        if x.dim() < 3 or x.shape[:-1] != y.shape[:-1] or x.shape[-2] < 2:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"Slotwise: expected [B, K, d] and [B, K, e], K >= 2, got {shapes}")

    def loss(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of the estimator and, through it, of the encoders, 0-d.

        Args:
            x: [*, K, d].
            y: [*, K, e].
            mask: bool [*, K], slots that exist.
        """
        self._check(x, y)
        return self.estimator.loss(x, y, mask=mask, key_mask=mask)

    def pointwise(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Each slot's term [*, K], detached."""
        self._check(x, y)
        return self.estimator.pointwise(x, y, mask=mask, key_mask=mask)

"""Contrastive objectives that differ in where positives and negatives come from.

All are `functional.infonce`: nats to maximise, so the loss is its negative. Embeddings come from
the agent's encoders; what is learnt here, if anything, is the similarity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mi import functional as F
from mi.critics import BilinearCritic
from mi.functional import Reduction


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
        """InfoNCE [nats], 0-d or as `reduction` says; differentiable in the queries and W.

        Args:
            query: [*, A, Z]; the A of one group are each other's candidates.
            key: [*, A, key_size], constants (of a momentum encoder, say).
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
        scores = self.critic.pairwise(query, key.detach())
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

"""Information between a representation and classes: given labels, some labels, or none."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mi import functional as F


class ClassInfoNCE(nn.Module):
    """I(Z; class) by a classifier whose logits are log-means of similarities to a class's samples.

    Barber-Agakov with a kernel decoder and the class prior in the logits, so that frequent classes
    do not swallow rare ones (generalised mutual learning for long tails). At most the entropy of
    the prior.

    Example, codes of tasks that were collected unevenly::

        objective = ClassInfoNCE(tasks, log_prior=counts.log())
        loss = objective.loss(code, task, memory_codes, memory_tasks)

    Args:
        num_classes: C.
        log_prior: [C], unnormalised; None is uniform.
        temperature: τ.
        cosine: normalise the embeddings first.
    """

    log_prior: Tensor | None

    def __init__(
        self,
        num_classes: int,
        log_prior: Tensor | None = None,
        temperature: float = 0.1,
        cosine: bool = True,
    ) -> None:
        super().__init__()
        if log_prior is not None and log_prior.shape != (num_classes,):
            raise ValueError(
                f"ClassInfoNCE: expected log_prior [{num_classes}], got {tuple(log_prior.shape)}"
            )
        self.num_classes, self.temperature, self.cosine = num_classes, temperature, cosine
        self.register_buffer("log_prior", log_prior)

    def information(
        self,
        query: Tensor,
        labels: Tensor,
        key: Tensor,
        key_labels: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The bound [nats], 0-d; differentiable. Anchors whose class has no key do not count.

        Args:
            query: [N, d].
            labels: int64 [N].
            key: [M, d].
            key_labels: int64 [M].
            mask: bool [N].
        """
        if self.cosine:
            query, key = normalize(query, dim=-1), normalize(key, dim=-1)
        scores = query @ key.T / self.temperature
        logits = F.class_scores(scores, key_labels, self.num_classes)
        known = (labels[:, None] == key_labels).any(1)
        return F.infonce(
            logits, targets=labels, log_prior=self.log_prior,
            mask=known if mask is None else known & mask,
        )  # fmt: skip

    def loss(
        self,
        query: Tensor,
        labels: Tensor,
        key: Tensor,
        key_labels: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """-`information`, 0-d."""
        return -self.information(query, labels, key, key_labels, mask)


class DiscreteInfoMax(nn.Module):
    """H(C) - λ H(C | X) of soft classes, plus the likelihood of labels where there are some.

    Krause et al. 2010; PIM with λ != 1; ClusT3 with `marginal="kl_uniform"`.

    Example, skills or clusters without labels, and adaptation to a new domain::

        objective = DiscreteInfoMax(conditional_weight=0.5)
        loss = objective.loss(logits, labels)                      # labels -1 where unknown

    Args:
        conditional_weight: λ.
        marginal: see `functional.discrete_infomax`.
    """

    def __init__(
        self,
        conditional_weight: float = 1.0,
        marginal: Literal["entropy", "kl_uniform"] = "entropy",
    ) -> None:
        super().__init__()
        self.conditional_weight = conditional_weight
        self.marginal: Literal["entropy", "kl_uniform"] = marginal

    def information(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """The first two terms [nats], 0-d, of logits [*, C]."""
        return F.discrete_infomax(
            logits, conditional_weight=self.conditional_weight, marginal=self.marginal, mask=mask
        )

    def loss(self, logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """-`information` of the unlabelled rows - E log p(label) of the labelled ones, 0-d.

        Args:
            logits: [*, C].
            labels: int64 [*], -1 where there is none; None: nowhere.
        """
        if labels is None:
            return -self.information(logits)
        known = labels >= 0
        log_q = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        return -self.information(logits, ~known) - F.barber_agakov(log_q, 0.0, mask=known)

    @torch.no_grad()
    def pointwise(self, logits: Tensor) -> Tensor:
        """E over the class of log p(c|x) / p(c), [*], detached: what each x tells."""
        log_p = logits.log_softmax(-1)
        log_mean = log_p.flatten(0, -2).logsumexp(0) - torch.tensor(log_p[..., 0].numel()).log()
        return (log_p.exp() * (log_p - log_mean)).sum(-1)

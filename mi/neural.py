"""Estimators that learn: a critic or a decoder, a loss to train it by, a value to read.

`loss` trains the estimator's own parameters; `bound` is the differentiable value for whoever
produced x and y; `pointwise` is a reward per sample; `estimate` reads the value of data that `fit`
has not seen. Loss and value differ for JSD, SMILE, f-DIME, MINE and CLUB: one method for both is
the source of most mistakes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from mi import functional as F
from mi.critics import (
    CanonicalCritic,
    ConcatCritic,
    CopulaCritic,
    Critic,
    Decoder,
    FlowDecoder,
    GatedCritic,
    GaussianDecoder,
    MixtureDecoder,
    ResidualCritic,
    SumCritic,
)
from mi.estimators.measures import Estimate
from mi.functional import Options
from mi.result import Kind, MIResult


class FitReport(NamedTuple):
    """What `fit` did."""

    steps: int
    """Gradient steps until it stopped."""
    best_step: int
    """After which the held-out loss was lowest; its parameters are kept."""
    loss: float
    """Held-out loss there."""
    converged: bool
    """Whether the held-out loss had stopped falling before the steps ran out."""


class MIEstimator(nn.Module):
    """A learnt estimator of I(X; Y) [nats]; x [N, d], y [N, e], or int64 [N] for a class decoder.

    Args:
        critic: a `Critic`, or a `Decoder` where the estimator needs a density.
    """

    kind: ClassVar[Kind] = "estimate"
    formula: ClassVar[str] = ""
    reference: ClassVar[str] = ""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic
        self._seen: Tensor | None = None

    # What subclasses say.

    def _value(self, options: Options) -> Tensor:
        """The value, from `scores` or `pos` and `neg` among the options."""
        raise NotImplementedError

    def _objective(self, options: Options) -> Tensor:
        """What training maximises; the value unless it is another."""
        return self._value(options)

    # What users call.

    def loss(
        self, x: Tensor, y: Tensor, *, negatives: Tensor | None = None, **options: Unpack[Options]
    ) -> Tensor:
        """Loss of the estimator's parameters, 0-d.

        Args:
            x: anchors [N, d].
            y: their partners [N, e].
            negatives: [N, K, e] of each anchor or [K, e] of all, instead of the other rows' y.
            options: masks, weights, positives … of `mi.functional`.
        """
        return -self._objective(self._score(x, y, negatives, options))

    def bound(
        self,
        x: Tensor,
        y: Tensor,
        *,
        negatives: Tensor | None = None,
        minimize: bool = False,
        allow: bool = False,
        **options: Unpack[Options],
    ) -> Tensor:
        """The differentiable value for encoders of x and y, 0-d.

        Args:
            x: as in `loss`, like the others.
            y: likewise.
            negatives: likewise.
            minimize: say so if the value will be minimised, which is what upper bounds are for.
            allow: to do the opposite of what the bound can promise, knowingly.
            options: likewise.

        Raises:
            ValueError: an upper bound would be maximised, or a lower bound minimised.
        """
        wrong = self.kind == ("lower" if minimize else "upper")
        if wrong and not allow:
            article = "an" if self.kind == "upper" else "a"
            does, turn = ("minimising", "maximise") if minimize else ("maximising", "minimise")
            raise ValueError(
                f"{type(self).__name__}: {does} {article} {self.kind} bound promises nothing "
                f"about the information; {turn} it{'' if minimize else ' (minimize=True)'}, or "
                "pass allow=True"
            )
        return self._value(self._score(x, y, negatives, options))

    def pointwise(
        self, x: Tensor, y: Tensor, *, negatives: Tensor | None = None, **options: Unpack[Options]
    ) -> Tensor:
        """Each pair's share of the value [N], detached: a reward."""
        options["reduction"] = "none"
        with torch.no_grad():
            return self._value(self._score(x, y, negatives, options))

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor, candidates: int = 1024) -> MIResult:
        """The value on samples that `fit` has not seen.

        Args:
            x: [N, d].
            y: [N, e].
            candidates: K, samples scored against each other; memory grows with its square.
        """
        size = min(candidates, len(x))
        starts = range(0, len(x) - size + 1, size)
        parts = [self.pointwise(x[i : i + size], y[i : i + size]).double() for i in starts]
        terms = torch.cat(parts)
        value, stderr = terms.mean().item(), (terms.std() / math.sqrt(len(terms))).item()
        warnings: list[str] = []
        _check_finite(x, y)
        if self._seen is not None and torch.isin(_row_keys(x, y), self._seen).double().mean() > 0.1:
            warnings.append("estimated on the samples it was fitted to: too high; hold some out")
        diagnostics = {"candidates": float(size)}
        self._examine(x[:size], y[:size], value, warnings, diagnostics)
        return MIResult(
            value, stderr, (value - 1.96 * stderr, value + 1.96 * stderr), self.kind,
            type(self).__name__, tuple(warnings), diagnostics,
        )  # fmt: skip

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        steps: int = 2000,
        batch_size: int = 256,
        lr: float = 1e-3,
        validation: float = 0.2,
        patience: int = 8,
        negatives: int = 0,
        one_cycle: bool = False,
        every: int | None = None,
        average: float = 0.0,
        seed: int = 0,
    ) -> FitReport:
        """Train by `loss` until it stops falling on held-out samples; keep the best parameters.

        Args:
            x: [N, d]; scale it to unit variance.
            y: [N, e]; likewise.
            steps: at most.
            batch_size: samples per step.
            lr: Adam's step size.
            validation: share of the samples that only judge.
            patience: judgements without improvement before it stops.
            negatives: other rows' y per anchor, drawn at random; 0 takes all of the batch, which
                costs its square with a critic that is not separable.
            one_cycle: let the step size rise to `lr` and fall to 0 over `steps`.
            every: steps between judgements; None takes 50, or a twentieth of a short run.
            average: of the parameters that are judged and kept: they are a moving average that
                forgets 1 - `average` a step (Polyak & Juditsky 1992). 0 takes them as they are.
            seed: of the split and the batches.
        """
        if len(x) != len(y) or len(x) < 10:
            raise ValueError(f"fit: expected at least 10 pairs, got {len(x)} x and {len(y)} y")
        _check_finite(x, y)
        for name, v in (("x", x), ("y", y)):
            constant = (v == v[0]).flatten(1).all(0) if v.dim() > 1 else (v == v[0]).all()[None]
            if constant.any():
                column = int(constant.nonzero()[0])
                raise ValueError(f"{name}: column {column} is constant and tells nothing; drop it")
        generator = torch.Generator(x.device).manual_seed(seed)
        order = torch.randperm(len(x), generator=generator, device=x.device)
        held = order[: max(4, int(validation * len(x)))]
        used = order[len(held) :]
        keys = _row_keys(x, y)
        # Where rows repeat, as discrete ones do, meeting one again says nothing.
        self._seen = keys if len(keys.unique()) > 0.9 * len(keys) else None
        every = every or max(1, min(50, steps // 20))
        parameters: list[Tensor] = [p for p in self.parameters() if p.requires_grad]
        judge = copy.deepcopy(self) if average else self
        averaged: list[Tensor] = [p for p in judge.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr, fused=True)
        cycle = (
            torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
            if one_cycle
            else None
        )

        def loss(estimator: MIEstimator, rows: Tensor) -> Tensor:
            if not negatives:
                return estimator.loss(x[rows], y[rows])
            shifts = torch.randint(1, len(rows), (negatives,), generator=generator, device=x.device)
            other = (torch.arange(len(rows), device=x.device)[:, None] + shifts) % len(rows)
            return estimator.loss(x[rows], y[rows], negatives=y[rows][other])

        best, best_step, kept = math.inf, 0, copy.deepcopy(self.state_dict())
        for step in range(1, steps + 1):
            rows = used[
                torch.randint(len(used), (batch_size,), generator=generator, device=x.device)
            ]
            optimizer.zero_grad()
            loss(self, rows).backward()
            optimizer.step()
            if cycle is not None:
                cycle.step()
            if average:  # of few steps, their mean
                with torch.no_grad():
                    torch._foreach_lerp_(averaged, parameters, max(1 - average, 1 / step))
            if step % every and step < steps:
                continue
            with torch.no_grad():
                parts = held[: 8 * batch_size].split(min(batch_size, len(held)))
                judged = [loss(judge, p) for p in parts if len(p) == len(parts[0])]
                now = torch.stack(judged).mean().item()
            if now < best:
                best, best_step, kept = now, step, copy.deepcopy(judge.state_dict())
            elif step - best_step >= patience * every:
                break
        self.load_state_dict(kept)
        return FitReport(step, best_step, best, step - best_step >= patience * every)

    def _score(self, x: Tensor, y: Tensor, negatives: Tensor | None, options: Options) -> Options:
        if negatives is None:
            return {**options, "scores": self.critic.pairwise(x, y)}  # type: ignore[return-value]
        if negatives.dim() == y.dim():
            neg = self.critic.pairwise(x, negatives)
        else:
            neg = self.critic(x[..., None, :].expand(*negatives.shape[:-1], -1), negatives)
        return {**options, "pos": self.critic(x, y), "neg": neg}

    def _examine(
        self, x: Tensor, y: Tensor, value: float, warnings: list[str], diagnostics: dict[str, float]
    ) -> None:
        """Add what users of this estimator must know."""


def _check_finite(x: Tensor, y: Tensor) -> None:
    for name, v in (("x", x), ("y", y)):
        bad = ~torch.isfinite(v.reshape(len(v), -1)).all(0)
        if bad.any():
            column = int(bad.nonzero()[0])
            raise ValueError(f"{name}: column {column} holds values that are not finite")


def _row_keys(x: Tensor, y: Tensor) -> Tensor:
    """A number for each pair [N], equal for equal pairs and hardly otherwise."""
    row = torch.cat([v.reshape(len(v), -1).double() for v in (x, y)], 1)
    return (row * torch.arange(1, row.shape[1] + 1, device=row.device).double().sqrt()).sum(1)


class InfoNCE(MIEstimator):
    """`functional.infonce`; says when it has reached its ceiling log K."""

    kind = "lower"
    formula = "E[f - log mean_k e^{f_k}] <= log K"
    reference = "van den Oord et al. 2018"

    def _value(self, options: Options) -> Tensor:
        return F.infonce(**options)

    def _examine(self, x, y, value, warnings, diagnostics) -> None:
        ceiling = math.log(diagnostics["candidates"])
        diagnostics["ceiling"] = ceiling
        if value > ceiling - 0.5:
            # The same critic's Donsker-Varadhan value has no ceiling: how far it may have to reach.
            needed = math.exp(max(F.dv(self.critic.pairwise(x, y)).item(), value) + 1)
            warnings.append(
                f"saturated: {value:.2f} of at most log K = {ceiling:.2f} nats; K = {needed:.0f} "
                "candidates are needed, or an estimator without this ceiling (SMILE, JSD, DoE)"
            )


class DonskerVaradhan(MIEstimator):
    """`functional.dv`."""

    kind = "lower"
    formula = "E f - log E⁻ e^f"
    reference = "Donsker & Varadhan 1983"

    def _value(self, options: Options) -> Tensor:
        return F.dv(**options)


class MINE(DonskerVaradhan):
    """`functional.dv`, trained with a moving average of the partition function.

    Args:
        critic: f.
        rate: of the moving average.
    """

    reference = "Belghazi et al. 2018"
    running: Tensor

    def __init__(self, critic: Critic, rate: float = 0.01) -> None:
        super().__init__(critic)
        self.rate = rate
        self.register_buffer("running", torch.tensor(math.nan))

    def _objective(self, options: Options) -> Tensor:
        with torch.no_grad():
            now = F.plug_in(**options) - F.dv(**options)  # log E⁻ e^f
            average = torch.logaddexp(
                self.running + math.log1p(-self.rate), now + math.log(self.rate)
            )
            average = torch.where(self.running.isnan(), now, average)
        if torch.is_grad_enabled():
            self.running.copy_(average)
        return F.mine(running=average, **options)


class NWJ(MIEstimator):
    """`functional.nwj`."""

    kind = "lower"
    formula = "E f - e⁻¹ E⁻ e^f"
    reference = "Nguyen, Wainwright & Jordan 2010"

    def _value(self, options: Options) -> Tensor:
        return F.nwj(**options)


class TUBA(MIEstimator):
    """`functional.tuba` with one learnt baseline."""

    kind = "lower"
    formula = "1 + E[f - a] - E⁻ e^{f-a}"
    reference = "Poole et al. 2019"

    def __init__(self, critic: Critic) -> None:
        super().__init__(critic)
        self.log_baseline = nn.Parameter(torch.zeros(()))

    def _value(self, options: Options) -> Tensor:
        return F.tuba(log_baseline=self.log_baseline, **options)


class InterpolatedBound(TUBA):
    """`functional.ialpha` with one learnt baseline.

    Args:
        critic: f.
        alpha: 1 is InfoNCE, towards 0 less bias and more variance.
    """

    formula = "1 + E[f - log m] - E⁻ e^f/m, m = α mean e^f + (1-α) e^a"

    def __init__(self, critic: Critic, alpha: float = 0.01) -> None:
        super().__init__(critic)
        self.alpha = alpha

    def _value(self, options: Options) -> Tensor:
        return F.ialpha(alpha=self.alpha, log_baseline=self.log_baseline, **options)


class JSD(MIEstimator):
    """Trained by `functional.jsd`, the most stable of all; read by `functional.plug_in`."""

    formula = "E f; f maximises E log σ(f) + E⁻ log σ(-f)"
    reference = "Hjelm et al. 2019; Liao et al. 2020 (DEMI)"

    def _objective(self, options: Options) -> Tensor:
        return F.jsd(**options)

    def _value(self, options: Options) -> Tensor:
        return F.plug_in(**options)


class SMILE(JSD):
    """Trained by `functional.jsd`, read by `functional.smile`; neither bound.

    Args:
        critic: f.
        clip: τ; a large one has less bias and more variance.
    """

    formula = "E f - log E⁻ e^{clip(f, ±τ)}; f as in JSD"
    reference = "Song & Ermon 2020"

    def __init__(self, critic: Critic, clip: float = 5.0) -> None:
        super().__init__(critic)
        self.clip = clip

    def _value(self, options: Options) -> Tensor:
        return F.smile(clip=self.clip, **options)


class FDIME(JSD):
    """Trained by `functional.fdime`, read by `functional.plug_in`.

    Args:
        critic: f.
        divergence: which one training maximises.
    """

    formula = "E f; f maximises E T(f) - E⁻ g*(T(f))"
    reference = "Letizia, Novello & Tonello 2024"

    def __init__(
        self,
        critic: Critic,
        divergence: Literal["kl", "gan", "hellinger", "shifted_log"] = "hellinger",
    ) -> None:
        super().__init__(critic)
        self.divergence: Literal["kl", "gan", "hellinger", "shifted_log"] = divergence

    def _objective(self, options: Options) -> Tensor:
        return F.fdime(divergence=self.divergence, **options)


class DensityRatioChain(JSD):
    """E Σ_k f_k: the log-ratio as a sum over bridges between joint and product distribution.

    Rhodes et al. 2020 (TRE). Each classifier tells waypoint k from k + 1, √(1 - s²) y + s y' with
    s from 0 to 1 and y' another sample's, two distributions that overlap even where joint and
    product hardly do and one classifier learns no more. Measured, 20 nats in 10 dimensions from
    4,000 samples: 11.9 nats, where `JSD` has 8.5 and `SMILE`, without a chain, 12.8. For y of zero
    mean and unit variance.

    Args:
        critics: f_k; at least 2.
    """

    formula = "E Σ_k f_k; f_k tells waypoints √(1-s_k²) y + s_k y' apart by JSD"
    reference = "Rhodes, Xu & Gutmann 2020"

    def __init__(self, critics: list[Critic]) -> None:
        if len(critics) < 2:
            raise ValueError(f"DensityRatioChain: expected at least 2 critics, got {len(critics)}")
        super().__init__(SumCritic(critics))

    def loss(self, x, y, *, negatives=None, **options: Any) -> Tensor:
        """Mean loss of the classifiers, 0-d; y' is the next row, or the first negative."""
        other = y.roll(1, 0)
        if negatives is not None:
            other = negatives[:, 0] if negatives.dim() > y.dim() else negatives[:1].expand_as(y)
        critics = list(self.critic.critics)  # type: ignore[arg-type]
        share = torch.linspace(0, 1, len(critics) + 1, device=y.device)
        points = [(1 - s * s).sqrt() * y + s * other for s in share]
        terms = [
            F.jsd(pos=f(x, a), neg=f(x, b)[:, None], **options)
            for f, a, b in zip(critics, points[:-1], points[1:], strict=True)
        ]
        return -torch.stack(terms).mean()


class FLO(MIEstimator):
    """`functional.flo` with a second critic u; -u is a reward of low variance.

    Args:
        critic: f.
        u: another critic, of pairs.
    """

    kind = "lower"
    formula = "1 - E[u + e^{-u-f} E⁻ e^f]"
    reference = "Guo et al. 2022"

    def __init__(self, critic: Critic, u: Critic) -> None:
        super().__init__(critic)
        self.u = u

    def _score(self, x, y, negatives, options) -> Options:
        scored = super()._score(x, y, negatives, options)
        return {**scored, "u": self.u(x, y)}  # type: ignore[typeddict-unknown-key, return-value]

    def _value(self, options: Options) -> Tensor:
        return F.flo(**options)  # type: ignore[missing-argument]

    def pointwise(self, x, y, *, negatives=None, **options) -> Tensor:
        """-u(x, y), [N], detached."""
        with torch.no_grad():
            return -self.u(x, y)

    @torch.no_grad()
    def estimate(self, x: Tensor, y: Tensor, candidates: int = 1024) -> MIResult:
        """The bound; `pointwise` is its learnt part, whose mean is a bound only at the optimum."""
        found = super().estimate(x, y, candidates)
        size = int(found.diagnostics["candidates"])
        parts = [
            self.bound(x[i : i + size], y[i : i + size]) for i in range(0, len(x) - size + 1, size)
        ]
        value = torch.stack(parts).mean().item()
        half = found.interval[1] - found.value
        return found._replace(value=value, interval=(value - half, value + half))


class _WithDecoder(MIEstimator):
    """Trained by the likelihood of its decoder q(y|x)."""

    critic: Decoder

    def __init__(self, decoder: Decoder) -> None:
        if not isinstance(decoder, Decoder):
            raise TypeError(
                f"{type(self).__name__}: expected a Decoder, got {type(decoder).__name__}"
            )
        super().__init__(decoder)

    def _objective(self, options: Options) -> Tensor:
        return F.plug_in(**options)


class CLUB(_WithDecoder):
    """`functional.club`: an upper bound as far as q is true; says if q has learnt nothing."""

    kind = "upper"
    formula = "E log q(y|x) - E⁻ log q(y|x)"
    reference = "Cheng et al. 2020"

    def _value(self, options: Options) -> Tensor:
        return F.club(**options)

    def _examine(self, x, y, value, warnings, diagnostics) -> None:
        """The gain of q over the best q(y) of its own kind: an equal mixture over all x."""
        log_q = self.critic.pairwise(x, y)
        marginal = torch.logsumexp(log_q, 0) - math.log(len(x))
        diagnostics["gain"] = gain = (log_q.diagonal() - marginal).mean().item()
        if gain <= 0.01:
            warnings.append(
                f"q(y|x) tells {gain:.3f} nats more about y than nothing does: it has not learnt, "
                "and this is no upper bound"
            )


class L1Out(CLUB):
    """`functional.l1out`: an upper bound as far as q is the true conditional."""

    formula = "E[log q(y|x) - log mean_{x'≠x} q(y|x')]"
    reference = "Poole et al. 2019"

    def _value(self, options: Options) -> Tensor:
        return F.l1out(**options)


class BarberAgakov(_WithDecoder):
    """`functional.barber_agakov`: H(Y) + E log q(y|x).

    Args:
        decoder: q(y|x).
        entropy: H(Y) [nats] in the decoder's unit; log C of C equally likely classes, say.
    """

    kind = "lower"
    formula = "H(Y) + E log q(y|x)"
    reference = "Barber & Agakov 2003"

    def __init__(self, decoder: Decoder, entropy: float) -> None:
        super().__init__(decoder)
        self.entropy = entropy

    def _score(self, x, y, negatives, options) -> Options:
        if negatives is not None:
            raise ValueError(f"{type(self).__name__}: a density needs no negatives")
        return {**options, "log_q": self.critic(x, y)}  # type: ignore[typeddict-unknown-key]

    def _objective(self, options: Options) -> Tensor:
        return self._value(options)

    def _value(self, options: Options) -> Tensor:
        return F.barber_agakov(log_prior=-self.entropy, **options)  # type: ignore[missing-argument]


class DoE(_WithDecoder):
    """Difference of entropies: E log q(y|x) - E log r(y), each density learnt; neither bound.

    Args:
        decoder: q(y|x).
        marginal: r, a decoder of x_size 1, which is shown zeros.
    """

    formula = "E log q(y|x) - E log r(y)"
    reference = "McAllester & Stratos 2020"

    def __init__(self, decoder: Decoder, marginal: Decoder) -> None:
        super().__init__(decoder)
        self.marginal = marginal

    def _score(self, x, y, negatives, options) -> Options:
        if negatives is not None:
            raise ValueError(f"{type(self).__name__}: densities need no negatives")
        nothing = torch.zeros_like(x[..., :1])
        pair = {"log_q": self.critic(x, y), "log_prior": self.marginal(nothing, y)}
        return {**options, **pair}  # type: ignore[typeddict-item]

    def _objective(self, options: Options) -> Tensor:
        conditional, marginal = options["log_q"], options["log_prior"]  # type: ignore[typeddict-item]
        rest = {k: v for k, v in options.items() if k not in ("log_q", "log_prior")}
        return F.barber_agakov(conditional + marginal, 0.0, **rest)  # type: ignore[arg-type]

    def _value(self, options: Options) -> Tensor:
        return F.barber_agakov(**options)  # type: ignore[missing-argument]


class FlowDoE(DoE):
    """`DoE` with normalising flows for both densities."""

    formula = "E log q(y|x) - E log r(y), q and r normalising flows"
    reference = "McAllester & Stratos 2020; Butakov et al. 2024"


def _critic(x_size: int, y_size: int) -> Critic:
    """Smooth but for one edge, and narrow: wider ones lose more to over-fitting."""
    return GatedCritic(x_size, y_size, hidden=64, embedding=16)


LEARNT: dict[str, tuple[type[MIEstimator], Callable[[int, int], MIEstimator]]] = {
    "infonce": (InfoNCE, lambda d, e: InfoNCE(_critic(d, e))),
    "dv": (DonskerVaradhan, lambda d, e: DonskerVaradhan(_critic(d, e))),
    "mine": (MINE, lambda d, e: MINE(_critic(d, e))),
    "nwj": (NWJ, lambda d, e: NWJ(_critic(d, e))),
    "tuba": (TUBA, lambda d, e: TUBA(_critic(d, e))),
    "ialpha": (InterpolatedBound, lambda d, e: InterpolatedBound(_critic(d, e))),
    "jsd": (JSD, lambda d, e: JSD(_critic(d, e))),
    "smile": (SMILE, lambda d, e: SMILE(_critic(d, e))),
    "fdime": (FDIME, lambda d, e: FDIME(_critic(d, e))),
    "flo": (FLO, lambda d, e: FLO(_critic(d, e), ConcatCritic(d, e))),
    "club": (CLUB, lambda d, e: CLUB(GaussianDecoder(d, e))),
    "l1out": (L1Out, lambda d, e: L1Out(GaussianDecoder(d, e))),
    "doe": (DoE, lambda d, e: DoE(MixtureDecoder(d, e), MixtureDecoder(1, e))),
    "ndoe": (FlowDoE, lambda d, e: FlowDoE(FlowDecoder(d, e), FlowDecoder(1, e))),
    "tre": (
        DensityRatioChain,
        lambda d, e: DensityRatioChain([_critic(d, e) for _ in range(6)]),
    ),
}
"""What `estimate_mi` can train on samples: name -> class, and maker from the sizes of x and y."""


_TRAINING: dict[str, Any] = {"lr": 5e-3, "every": 10, "patience": 16, "average": 0.99}
"""Of every estimator in `LEARNT`; chosen on distributions of no benchmark, by held-out bounds and,
patience, by their known truth."""


def cross_fitted(
    name: str, x: np.ndarray, y: np.ndarray, seed: int, **fit: Any
) -> tuple[list[str], Estimate]:
    """Warnings, and the mean over two halves, each judged by an estimator fitted to the other.

    Args:
        name: of `LEARNT`.
        x: [N, d], of unit variance.
        y: [N, e].
        seed: of halves, networks and batches; torch's global generator is left as it was.
        fit: arguments of `MIEstimator.fit`, before those of `_TRAINING`.
    """
    warnings: list[str] = []
    results: list[MIResult] = []
    for fold, (x_fit, y_fit, x_judge, y_judge) in enumerate(held_out(x, y, 2, seed)):
        estimator = seeded(seed + fold, lambda: LEARNT[name][1](x.shape[1], y.shape[1]))
        report = estimator.fit(x_fit, y_fit, seed=seed, **(_TRAINING | fit))
        found = estimator.estimate(x_judge, y_judge)
        results.append(found)
        warnings += [w for w in found.warnings if w not in warnings]
        if not report.converged:
            warnings.append(f"{name}: the held-out loss was still falling when training ended")
    value = float(np.mean([r.value for r in results]))
    stderr = math.hypot(*(r.stderr for r in results)) / 2
    return list(dict.fromkeys(warnings)), Estimate(value, np.full(len(x), value), stderr)


def residual(
    x: np.ndarray, y: np.ndarray, seed: int, *, steps: int = 800, folds: int = 4, gate: bool = False
) -> tuple[Estimate, float]:
    """InfoNCE of held-out samples, f = log-ratio of a copula + network; and if the network helps.

    The gain is of the held-out bound, in standard errors beyond 3: above 0 refutes the copula. The
    drift is what the bound still lacks if it has grown as 1/√N since half of the samples.

    Args:
        x: normal scores [N, d].
        y: [N, e].
        seed: of folds, networks and batches; torch's global generator is left as it was.
        steps: at most, per fold.
        folds: each is judged by a critic that was fitted to the others.
        gate: stop after the first fold if it shows no gain.
    """
    values, gains, drift, significance = [], [], 0.0, -3.0
    for fold, (x_fit, y_fit, x_judge, y_judge) in enumerate(held_out(x, y, folds, seed)):
        learnt, known = _learnt(x_fit, y_fit, x_judge, y_judge, steps, seed, seed + fold)
        values.append(learnt)
        gains.append(learnt - known)
        gain = torch.cat(gains)
        error = gain.std().item() / math.sqrt(len(gain))
        significance = gain.mean().item() / error - 3 if error else -3.0
        if gate and significance <= 0:
            break
        if fold == 0:
            n = len(x_fit) // 2
            less, _ = _learnt(x_fit[:n], y_fit[:n], x_judge, y_judge, steps, seed, seed)
            drift = max(0.0, (learnt - less).mean().item()) / (math.sqrt(2) - 1)
    pointwise = torch.cat(values).numpy()
    return Estimate(float(pointwise.mean()), pointwise, drift=drift), significance


def _learnt(
    x_fit: Tensor,
    y_fit: Tensor,
    x_judge: Tensor,
    y_judge: Tensor,
    steps: int,
    seed: int,
    network_seed: int,
) -> tuple[Tensor, Tensor]:
    """Each held-out sample's InfoNCE with a network on the copula, and with the copula alone."""
    copula = CopulaCritic(x_fit, y_fit)
    network = seeded(network_seed, lambda: CanonicalCritic(x_fit, y_fit))
    estimator = InfoNCE(ResidualCritic(copula, network))
    estimator.fit(
        x_fit, y_fit, steps=steps, lr=5e-3, validation=0.15, one_cycle=True, seed=seed
    )  # fmt: skip
    learnt, known = [], []
    with torch.no_grad():
        for a, b in zip(x_judge.split(_CANDIDATES), y_judge.split(_CANDIDATES), strict=True):
            for terms, critic in ((learnt, estimator.critic), (known, copula)):
                terms.append(F.infonce(critic.pairwise(a, b), reduction="none").double())
    return torch.cat(learnt), torch.cat(known)


_CANDIDATES = 4096
"""Held-out samples that are scored against each other at once."""


def held_out(x: np.ndarray, y: np.ndarray, folds: int, seed: int):
    """(x, y to fit, x, y to judge) of every fold, as float32 tensors."""
    order = np.random.default_rng(seed).permutation(len(x))
    parts = [torch.from_numpy(v[order]).float().chunk(folds) for v in (x, y)]
    for i in range(folds):
        rest = [torch.cat([p for j, p in enumerate(part) if j != i]) for part in parts]
        yield *rest, parts[0][i], parts[1][i]


def seeded(seed: int, make: Callable[[], Any]) -> Any:
    """What `make` makes with this seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()

"""Bounds and estimates of mutual information as pure functions of scores: a formula sheet.

One rule for all of them. Row i is an anchor x_i, column j a candidate y_j, f_ij the critic's score:

- `scores` [*, N, M] with the pair (i, i) from the joint distribution and the others from the
  product of marginals; or explicit `pos` [*, N] and `neg` [*, N, K]. Leading dimensions are
  independent groups (time, batch, …), each with candidates of its own.
- `positives` bool [*, N, M] marks other or several joint pairs per anchor, `targets` gives their
  index [*, N] or, for InfoNCE, their probabilities [*, N, M]. Pairs that are not positive are
  negatives, unless `exclude` [*, N, M] removes them (false negatives, other conditions).
- `log_weight` [*, N, M] adds to the log of a negative's mass (importance weights of mean 1),
  `log_prior` [M] replaces the uniform mass of the candidates (classes of unequal frequency).
- `mask` [*, N] says which anchors exist and `key_mask` [*, M] which candidates do; `weight` [*, N]
  weighs anchors. Masked anchors, and those without a positive or a negative, contribute exactly 0,
  as does their gradient.
- `symmetric` averages with the transposed problem, in which candidates are the anchors.
- `reduction` "mean", "sum", or "none" for the pointwise terms [*, N].

Values are in nats. Lower bounds and estimates are to be maximised: the loss is `-value`. Upper
bounds say so, and are to be minimised. Half-precision scores are taken to float32 first.

E is the mean over anchors of their positives, E⁻ the mean over anchors of their negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from mi.fused import infonce_fused

Reduction = Literal["mean", "sum", "none"]


class Options(TypedDict, total=False):
    """Keyword arguments of every bound; see the module's docstring."""

    pos: Tensor | None
    neg: Tensor | None
    positives: Tensor | None
    targets: Tensor | None
    exclude: Tensor | None
    log_weight: Tensor | None
    log_prior: Tensor | None
    mask: Tensor | None
    key_mask: Tensor | None
    weight: Tensor | None
    symmetric: bool
    reduction: Reduction


# --- Lower bounds -------------------------------------------------------------------------------


def infonce(
    scores: Tensor | None = None,
    *,
    aggregate: Literal["mean_out", "sum_in"] = "mean_out",
    denominator: Literal["all", "own", "negatives"] = "all",
    **options: Unpack[Options],
) -> Tensor:
    """InfoNCE: E[f - log 1/K Σ_k e^{f_k}] over K candidates, at most log K. Lower bound.

    van den Oord et al. 2018. Optimal f = log p(y|x)/p(y) + c(x).

    Args:
        scores: [*, N, M].
        aggregate: several positives: the mean of their terms (SupCon, InfoCTM), or the log of the
            mean of their e^f (ACORM, MIL-NCE).
        denominator: all candidates; one positive and the negatives (InfoCTM); the negatives alone
            (decoupled, no longer at most log K).
        options: see the module.
    """
    terms = None
    if aggregate == "mean_out" and denominator == "all":
        terms = _plain_infonce(scores, options)
    if terms is not None:
        return _reduce(terms, None, None, options.get("reduction", "mean"))

    def value(p: _Pairs) -> Tensor:
        f = p.f - p.largest()  # which changes nothing but the rounding
        if p.soft is not None:
            every = _log_sum_exp(f + p.candidate_mass(), p.positive | p.negative)
            return (p.soft * (f - every[..., None])).masked_fill(~p.positive, 0).sum(-1)
        if denominator == "all":
            below = _log_sum_exp(f + p.candidate_mass(), p.positive | p.negative)[..., None]
        else:
            below = _log_sum_exp(f + p.negative_mass(), p.negative)[..., None]
        if denominator == "own":
            size = p.negative.sum(-1, keepdim=True).to(f.dtype)
            below = torch.logaddexp(f, below + size.log()) - (size + 1).log()
        if aggregate == "sum_in":
            if denominator == "own":
                raise ValueError("infonce: aggregate='sum_in' has one denominator, not 'own'")
            return _log_mean_exp(f, p.positive) - below[..., 0]
        return _mean(f - below, p.positive)

    return _evaluate("infonce", value, scores, options, soft=True, plain=False)


def _plain_infonce(scores: Tensor | None, options: Options) -> Tensor | None:
    """Pointwise terms of the common cases, many times faster than in general; None of others."""
    given = {name for name, value in options.items() if value is not None and value is not False}
    given -= {"reduction"}
    if scores is not None:
        if given or scores.dim() != 2 or scores.shape[0] != scores.shape[1]:
            return None
        terms = torch.log_softmax(_float32(scores), -1).diagonal()
        return terms + math.log(len(scores))
    pos, neg = options.get("pos"), options.get("neg")
    if given != {"pos", "neg"} or pos is None or neg is None:
        return None
    if pos.shape != neg.shape[:-1] or not neg.shape[-1]:
        return None
    f = _float32(torch.cat([pos[..., None], neg], -1))
    return torch.log_softmax(f, -1)[..., 0] + math.log(f.shape[-1])


def dv(scores: Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """Donsker-Varadhan: E f - log E⁻ e^f. Lower bound of the population; biased up on samples."""
    return _evaluate("dv", lambda p: p.joint() - p.log_partition(), scores, options)


def mine(scores: Tensor | None = None, *, running: Tensor, **options: Unpack[Options]) -> Tensor:
    """MINE: value of `dv`, gradient of E f - E⁻ e^f / e^running. Belghazi et al. 2018, eq. 12.

    Args:
        scores: [*, N, M].
        running: log of a moving average of the partition function E⁻ e^f, 0-d.
        options: see the module.
    """

    def value(p: _Pairs) -> Tensor:
        joint, partition = p.joint(), p.log_partition()
        surrogate = joint - (partition - running.detach()).exp()
        return (joint - partition - surrogate).detach() + surrogate

    return _evaluate("mine", value, scores, options)


def nwj(scores: Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """NWJ (f-GAN KL, MINE-f): E f - e⁻¹ E⁻ e^f. Lower bound; optimal f = 1 + log p(y|x)/p(y).

    Nguyen, Wainwright & Jordan 2010.
    """
    return _evaluate("nwj", lambda p: p.joint() - p.product(p.f - 1).exp(), scores, options)


def tuba(
    scores: Tensor | None = None, *, log_baseline: Tensor | float = 0.0, **options: Unpack[Options]
) -> Tensor:
    """TUBA: 1 + E[f - a] - E⁻ e^{f - a}. Lower bound; `nwj` is a = 1. Poole et al. 2019, eq. 7.

    Args:
        scores: [*, N, M].
        log_baseline: a, of each anchor [*, N] or one for all.
        options: see the module; not `symmetric`, which would need a baseline for either side.
    """
    a = torch.as_tensor(log_baseline)[..., None]
    return _evaluate(
        "tuba", lambda p: 1 + p.joint() - a[..., 0] - p.product(p.f - a).exp(), scores, options,
        one_sided=True,
    )  # fmt: skip


def ialpha(
    scores: Tensor | None = None,
    *,
    alpha: float,
    log_baseline: Tensor | float = 0.0,
    **options: Unpack[Options],
) -> Tensor:
    """I_α: between `tuba` (α = 0, high variance) and InfoNCE (α = 1, high bias). Lower bound.

    1 + E[f - log m] - E⁻ e^f / m, with m = α mean e^f + (1-α) e^a over candidates that never
    include the sample whose weight it is. Poole et al. 2019, eq. 12.

    Args:
        scores: [*, N, M]; one positive per anchor, at least two negatives.
        alpha: in (0, 1]; below 1 the value may exceed log K, up to log K/α.
        log_baseline: a, of each anchor [*, N] or one for all.
        options: see the module; not `symmetric`.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"ialpha: expected alpha in (0, 1] (0 is `tuba`), got {alpha}")
    base = torch.as_tensor(log_baseline)[..., None] + (
        math.log1p(-alpha) if alpha < 1 else -math.inf
    )

    def value(p: _Pairs) -> Tensor:
        size = p.negative.sum(-1, keepdim=True).clamp_min(1)
        f, own = p.f + p.negative_mass() + size.log(), p.joint()[..., None]
        total, others = _leave_one_out(f, p.negative)
        log_alpha = math.log(alpha) - size.log()
        marginal = torch.logaddexp(log_alpha + total[..., None], base)[..., 0]
        joint = torch.logaddexp(log_alpha + torch.logaddexp(own, others), base)
        mean = _mean(own - joint, p.negative)
        return 1 + mean - (total - size[..., 0].log() - marginal).exp()

    return _evaluate("ialpha", value, scores, options, one_sided=True, plain=False)


def flo(scores: Tensor | None = None, *, u: Tensor, **options: Unpack[Options]) -> Tensor:
    """FLO: 1 - E[u + e^{-u - f} E⁻ e^f]. Lower bound; at its optimum -u is pointwise information.

    Guo et al. 2022, eq. 8.

    Args:
        scores: [*, N, M].
        u: of each joint pair [*, N].
        options: see the module; not `symmetric`.
    """
    return _evaluate(
        "flo", lambda p: 1 - u - (p.product(p.f) - p.joint() - u).exp(), scores, options,
        one_sided=True,
    )  # fmt: skip


def barber_agakov(
    log_q: Tensor,
    log_prior: Tensor | float,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Barber-Agakov: H(Y) + E log q(y|x). Lower bound. Barber & Agakov 2003.

    Args:
        log_q: log-likelihood of a decoder [*].
        log_prior: log p(y) [*], or its mean -H(Y).
        mask: [*], bool.
        weight: [*].
        reduction: as everywhere.
    """
    return _reduce(_float32(log_q) - log_prior, mask, weight, reduction)


# --- Estimates: trained by one formula, read by another -----------------------------------------


def plug_in(scores: Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """E f: the information where f = log p(y|x)/p(y), as `jsd` and `fdime` teach. Estimate."""
    return _evaluate("plug_in", lambda p: p.joint(), scores, options)


def jsd(scores: Tensor | None = None, *, focal: float = 0.0, **options: Unpack[Options]) -> Tensor:
    """Jensen-Shannon: E log σ(f) + E⁻ log σ(-f). Optimal f = log p(y|x)/p(y); read by `plug_in`.

    The log-likelihood of a classifier of joint against product pairs, at even odds (Deep InfoMax,
    DEMI, GAN-DIME, pair matching). Twice the Jensen-Shannon divergence minus log 4.

    Args:
        scores: [*, N, M].
        focal: γ weighs each term by (its probability of being wrong)^γ (Lin et al. 2017), with
            which the optimal f is no longer the log-ratio.
        options: see the module.
    """

    def log_likelihood(f: Tensor) -> Tensor:
        return torch.sigmoid(-f) ** focal * logsigmoid(f) if focal else logsigmoid(f)

    return _evaluate(
        "jsd",
        lambda p: p.joint(log_likelihood(p.f)) + p.mean(log_likelihood(-p.f)),
        scores,
        options,
    )


def smile(scores: Tensor | None = None, *, clip: float = 5.0, **options: Unpack[Options]) -> Tensor:
    """SMILE: E f - log E⁻ e^{clip(f, ±τ)}, of a critic trained by `jsd`. Neither bound.

    Song & Ermon 2020.
    """
    return _evaluate(
        "smile", lambda p: p.joint() - p.log_partition(p.f.clamp(-clip, clip)), scores, options
    )


def fdime(
    scores: Tensor | None = None,
    *,
    divergence: Literal["kl", "gan", "hellinger", "shifted_log"] = "kl",
    **options: Unpack[Options],
) -> Tensor:
    """f-DIME: E T - E⁻ g*(T) with T = g'(e^f). Optimal f = log p(y|x)/p(y); read by `plug_in`.

    Letizia, Novello & Tonello 2024, with the critic written as a log-ratio for every divergence g.
    """
    forms: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
        "kl": lambda f: (1 + f, f.exp()),
        "gan": lambda f: (logsigmoid(f), softplus(f)),
        "hellinger": lambda f: (1 - (-f / 2).exp(), (f / 2).exp() - 1),
        "shifted_log": lambda f: (-torch.sigmoid(-f), softplus(f) + torch.sigmoid(-f) - 1),
    }
    if divergence not in forms:
        raise ValueError(f"fdime: expected divergence in {sorted(forms)}, got {divergence!r}")

    def value(p: _Pairs) -> Tensor:
        joint, conjugate = forms[divergence](p.f)
        return p.joint(joint) - p.mean(conjugate)

    return _evaluate("fdime", value, scores, options)


def wasserstein(scores: Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """Wasserstein dependency: E f - E⁻ f with f 1-Lipschitz. In the metric's unit, not nats.

    Ozair et al. 2019.
    """
    return _evaluate("wasserstein", lambda p: p.joint() - p.mean(p.f), scores, options)


# --- Upper bounds: to be minimised --------------------------------------------------------------


def club(scores: Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """CLUB: E log q(y|x) - E⁻ log q(y|x). Upper bound where q is the true conditional.

    Cheng et al. 2020; one negative per anchor is vCLUB-S.

    Args:
        scores: f_ij = log q(y_j | x_i), [*, N, M].
        options: see the module.
    """
    return _evaluate("club", lambda p: p.joint() - p.mean(p.f), scores, options)


def l1out(scores: Tensor | None = None, **options: Unpack[Options]) -> Tensor:
    """L1Out: E[log q(y|x) - log mean over other x' of q(y|x')]. Upper bound where q is true.

    Poole et al. 2019, eq. 11.

    Args:
        scores: f_ij = log q(y_j | x_i), [*, N, M]; in the form (pos, neg), neg[i, k] is
            log q(y_i | x_k).
        options: see the module; `mask`, `weight` and the result are about the columns y.
    """
    turned: Options = options if scores is None else _transposed(options)
    scores = None if scores is None else scores.transpose(-1, -2)
    if turned.get("symmetric"):
        raise ValueError("l1out: `symmetric` has no meaning for a conditional density")
    return _evaluate("l1out", lambda p: p.joint() - p.product(p.f), scores, turned)


def vib_kl(
    mean: Tensor,
    std: Tensor,
    prior_mean: Tensor | float = 0.0,
    prior_std: Tensor | float = 1.0,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """E KL(q(z|x) ‖ r(z)) of diagonal Gaussians. Upper bound of I(X; Z). Alemi et al. 2017.

    Args:
        mean: of q [*, d].
        std: of q [*, d], positive.
        prior_mean: of r.
        prior_std: of r.
        mask: [*], bool.
        weight: [*].
        reduction: as everywhere.
    """
    mean, std = _float32(mean), _float32(std)
    prior_std = torch.as_tensor(prior_std, dtype=std.dtype, device=std.device)
    ratio, shift = (std / prior_std).square(), ((mean - prior_mean) / prior_std).square()
    return _reduce(0.5 * (ratio + shift - 1 - ratio.log()).sum(-1), mask, weight, reduction)


# --- Discrete, kernel and geometric quantities --------------------------------------------------


def discrete_infomax(
    logits: Tensor,
    *,
    conditional_weight: float = 1.0,
    marginal: Literal["entropy", "kl_uniform"] = "entropy",
    mask: Tensor | None = None,
) -> Tensor:
    """H(E p(c|x)) - λ E H(p(c|x)): information between x and a soft class c, 0-d. Exact at λ = 1.

    Krause et al. 2010. `kl_uniform` replaces the first term by log C - KL(uniform ‖ E p), which
    forbids empty classes.

    Args:
        logits: [*, C].
        conditional_weight: λ.
        marginal: form of the first term.
        mask: [*], bool.
    """
    log_p = _float32(logits).log_softmax(-1)
    keep = torch.ones_like(log_p[..., 0]) if mask is None else mask.to(log_p.dtype)
    share = (keep / keep.sum().clamp_min(1)).unsqueeze(-1)
    log_mean = _log_mean_exp(
        log_p.flatten(0, -2).T, (keep > 0).flatten().expand(log_p.shape[-1], -1)
    )
    conditional = -(share * log_p.exp() * log_p).sum()
    if marginal == "kl_uniform":
        spread = math.log(log_p.shape[-1]) + (log_mean + math.log(log_p.shape[-1])).mean()
    else:
        spread = -(log_mean.exp() * log_mean).sum()
    return (spread - conditional_weight * conditional) * (keep.sum() > 0)


def alignment(x: Tensor, y: Tensor, power: float = 2.0) -> Tensor:
    """-E ‖x - y‖^power over pairs [N, d], 0-d. Wang & Isola 2020."""
    return -(x - y).norm(dim=-1).pow(power).mean()


def uniformity(x: Tensor, scale: float = 2.0) -> Tensor:
    """-log E⁻ e^{-t‖x - x'‖²} over distinct pairs of [N, d], 0-d: entropy up to constants."""
    x = _float32(x)
    other = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return -_log_mean_exp((-scale * _squared_distances(x)).flatten(), other.flatten())


def kernel_joint_entropy(x: Tensor, y: Tensor, width: float = 1.0) -> Tensor:
    """-E log E k(x, x') k(y, y'): joint entropy [nats, up to a constant], 0-d.

    Maximising it decorrelates x from y when each is kept uniform (SepCLR, Louiset et al. 2024).

    Args:
        x: [N, d].
        y: [N, e].
        width: of the Gaussian kernel, in the variables' unit.
    """
    distance = _squared_distances(_float32(x)) + _squared_distances(_float32(y))
    return -(torch.logsumexp(-distance / (2 * width**2), -1) - math.log(len(x))).mean()


def hsic(x: Tensor, y: Tensor, width: float | None = None) -> Tensor:
    """Hilbert-Schmidt independence criterion, 0-d: 0 without dependence; not nats.

    The unbiased estimate (Song et al. 2012) with Gaussian kernels; can be a little below 0.

    Args:
        x: [N, d], N >= 4.
        y: [N, e].
        width: of both kernels; None takes each one's median distance.
    """
    n = len(x)
    if n < 4:
        raise ValueError(f"hsic: expected at least 4 samples, got {n}")
    other = 1 - torch.eye(n, device=x.device)
    a, b = (_gaussian_kernel(_float32(v), width) * other for v in (x, y))
    trace, cross = (a * b).sum(), (a.sum(0) * b.sum(0)).sum()
    total = a.sum() * b.sum() / ((n - 1) * (n - 2))
    return (trace + total - 2 * cross / (n - 2)) / (n * (n - 3))


def renyi(x: Tensor, y: Tensor, order: float = 1.01, width: float | None = None) -> Tensor:
    """Matrix-based Rényi information of order α [nats], 0-d; no density and no critic needed.

    Sánchez Giraldo et al. 2015: entropies of the eigenvalues of normalised kernel matrices.

    Args:
        x: [N, d].
        y: [N, e].
        order: α > 0, not 1.
        width: of both kernels; None takes each one's median distance.
    """
    a, b = (_gaussian_kernel(_float32(v), width) for v in (x, y))

    def entropy(kernel: Tensor) -> Tensor:
        values = torch.linalg.eigvalsh(kernel / kernel.trace()).clamp_min(1e-12)
        return values.pow(order).sum().log() / (1 - order)

    return entropy(a) + entropy(b) - entropy(a * b)


def decorrelation(x: Tensor, y: Tensor) -> Tensor:
    """-‖corr(x, y) - 1‖² [0-d, at most 0]: equal views, uncorrelated features (Barlow Twins)."""
    x, y = ((v - v.mean(0)) / v.std(0).clamp_min(1e-6) for v in (_float32(x), _float32(y)))
    correlation = x.T @ y / (len(x) - 1)
    return -(correlation - torch.eye(len(correlation), device=x.device)).square().sum()


def kernel_cca(x: Tensor, y: Tensor, width: float | None = None, ridge: float = 0.02) -> Tensor:
    """-½ Σ log(1 - ρ_i²) of regularised kernel canonical correlations, 0-d; not quite nats.

    The kernel generalised variance of Bach & Jordan 2002, eq. 24: 0 for independent variables, as
    `gaussian_mi` of the kernels' features. Cubic in N.

    Args:
        x: [N, d].
        y: [N, e].
        width: of both kernels; None takes each one's median distance.
        ridge: κ; the larger, the less fine the dependence that is seen.
    """
    n = len(x)
    centre = torch.eye(n, device=x.device) - 1 / n
    a, b = (centre @ _gaussian_kernel(_float32(v), width).to(centre) @ centre for v in (x, y))
    damp = 0.5 * n * ridge * torch.eye(n, device=x.device)
    a, b = (torch.linalg.solve(k + damp, k) for k in (a, b))
    # ρ_i are the singular values of the product of the smoothers a and b, both symmetric.
    return -0.5 * torch.linalg.slogdet(torch.eye(n, device=x.device) - a @ b @ b @ a)[1]


def linear_erasure(x: Tensor, y: Tensor) -> Tensor:
    """X without what is linear in y, [N, d]: the smallest change after which cov(x, y) = 0.

    Least-squares concept erasure (Belrose et al. 2023, theorem 4.3): no linear decoder can read y
    any more. Of the samples given, to which the map is fitted.

    Args:
        x: [N, d].
        y: [N, e].
    """
    x, y = _float32(x), _float32(y)
    mean = x.mean(0)
    moment, cross = (x - mean).T @ (x - mean) / len(x), (x - mean).T @ (y - y.mean(0)) / len(x)
    values, vectors = torch.linalg.eigh(moment)
    kept = values > values.max() * len(values) * torch.finfo(x.dtype).eps
    root = torch.where(kept, values.clamp_min(1e-30).sqrt(), 0)
    inverse = torch.where(kept, 1 / root.clamp_min(1e-15), 0)
    whiten, colour = vectors * inverse @ vectors.T, vectors * root @ vectors.T
    basis, size, _ = torch.linalg.svd(whiten @ cross, full_matrices=False)
    basis = basis * (size > size.max() * 1e-5)
    return x - (x - mean) @ (colour @ basis @ basis.T @ whiten).T


class Elbo(NamedTuple):
    """The parts of E KL(q(z|x) ‖ N(0, 1)) [nats], each 0-d; their sum is the whole."""

    information: Tensor
    """I(X; Z)."""
    total_correlation: Tensor
    """Of the code's dimensions, or of its groups of dimensions."""
    dimensionwise_kl: Tensor
    """Σ_j KL(q(z_j) ‖ N(0, 1)), over dimensions or groups."""


def elbo_terms(
    z: Tensor, mean: Tensor, std: Tensor, dataset_size: int, groups: list[int] | None = None
) -> Elbo:
    """The β-TCVAE decomposition by minibatch-weighted sampling. Chen et al. 2018, appendix C.1.

    With groups, what dimensions of one factor share is not counted as total correlation.

    Args:
        z: a sample of each code [B, d].
        mean: [B, d].
        std: [B, d].
        dataset_size: samples that the minibatch was drawn from.
        groups: sizes of consecutive groups of dimensions; None is one each.
    """
    z, mean, std = _float32(z), _float32(mean), _float32(std)
    density = torch.distributions.Normal(mean, std).log_prob(z[:, None])  # [B of z, B of q, d]
    size = math.log(len(z) * dataset_size)
    own = density.diagonal(dim1=0, dim2=1).sum(0)
    joint = torch.logsumexp(density.sum(-1), 1) - size
    if groups is not None:
        density = torch.stack([part.sum(-1) for part in density.split(groups, -1)], -1)
    product = (torch.logsumexp(density, 1) - size).sum(-1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return Elbo((own - joint).mean(), (joint - product).mean(), (product - prior).mean())


def gradient_penalty(
    critic: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, y_other: Tensor
) -> Tensor:
    """E (‖∇f‖ - 1)² between joint and product pairs, 0-d. Gulrajani et al. 2017.

    Args:
        critic: (x [B, d], y [B, e]) -> [B].
        x: [B, d].
        y: partners of x [B, e].
        y_other: samples of the marginal [B, e].
    """
    mix = torch.rand(len(y), *[1] * (y.dim() - 1), device=y.device)
    inputs = [x.detach().requires_grad_(), (y + mix * (y_other - y)).detach().requires_grad_()]
    with torch.enable_grad():
        slopes = torch.autograd.grad(critic(*inputs).sum(), inputs, create_graph=True)
    norm = torch.cat([s.flatten(1) for s in slopes], 1).norm(dim=1)
    return (norm - 1).square().mean()


# --- From embeddings and labels to scores -------------------------------------------------------


def contrast(
    query: Tensor,
    key: Tensor,
    *,
    temperature: Tensor | float = 1.0,
    cosine: bool = False,
    symmetric: bool = False,
    gather: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """InfoNCE of f = q·k/τ without keeping the score matrix: memory O(N d + chunk M), 0-d.

    Equal to `infonce(query @ key.T / temperature)`, to which small problems go.

    Args:
        query: anchors [N, d].
        key: [M, d], M >= N; the first N are the anchors' partners, the others (a queue) negatives.
        temperature: τ.
        cosine: normalise both first.
        symmetric: average both directions; M = N.
        gather: keys of all processes of the default group are candidates, with gradients.
        chunk: anchors at a time; None decides by size.
    """
    query, key = _float32(query), _float32(key)
    if query.dim() != 2 or key.dim() != 2 or query.shape[1] != key.shape[1]:
        shapes = f"{tuple(query.shape)} and {tuple(key.shape)}"
        raise ValueError(f"contrast: expected [N, d] and [M, d], got {shapes}")
    if len(key) < len(query) or (symmetric and len(key) != len(query)):
        want = "as many keys as queries" if symmetric else "at least as many keys as queries"
        raise ValueError(f"contrast: expected {want}, got {len(query)} queries, {len(key)} keys")
    if cosine:
        query, key = normalize(query, dim=-1), normalize(key, dim=-1)
    return infonce_fused(query / temperature, key, symmetric=symmetric, gather=gather, chunk=chunk)


def ntxent(x: Tensor, y: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent: both views [N, d] are anchors and candidates, self left out. Chen et al. 2020."""
    z = normalize(torch.cat([_float32(x), _float32(y)]), dim=-1)
    self_pair = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return infonce(z @ z.T / temperature, positives=self_pair.roll(len(x), 1), exclude=self_pair)


def class_scores(scores: Tensor, key_labels: Tensor, num_classes: int) -> Tensor:
    """Log-mean of e^f over each class's keys, [*, N, C]: `infonce(…, targets=labels, log_prior=…)`.

    Makes of InfoNCE the Barber-Agakov bound with a kernel classifier (generalised mutual learning).
    A class without keys is a candidate that never wins.

    Args:
        scores: [*, N, M].
        key_labels: int64 [M].
        num_classes: C.
    """
    member = key_labels == torch.arange(num_classes, device=key_labels.device)[:, None]
    spread = _float32(scores)[..., None, :].expand(*scores.shape[:-1], *member.shape)
    means = _log_mean_exp(spread, member.expand_as(spread))
    return means.masked_fill(~member.any(-1), torch.finfo(means.dtype).min / 4)


def other_condition(condition: Tensor, key_condition: Tensor | None = None) -> Tensor:
    """Pairs whose conditions differ, bool [*, N, M]: as `exclude` it conditions a bound on them.

    Args:
        condition: int64 [*, N].
        key_condition: int64 [*, M]; None for the anchors' own.
    """
    key_condition = condition if key_condition is None else key_condition
    return condition[..., :, None] != key_condition[..., None, :]


def derangement(n: int, device: torch.device | str = "cpu", generator=None) -> Tensor:
    """A permutation without fixed points, int64 [n]: one negative each, never the positive.

    A random cyclic shift of a random order: every other sample is equally likely.
    """
    if n < 2:
        raise ValueError(f"derangement: expected at least 2 samples, got {n}")
    order = torch.randperm(n, device=device, generator=generator)
    shift = torch.randint(1, n, (1,), device=device, generator=generator)
    rolled = order[(torch.arange(n, device=device) + shift) % n]
    return torch.empty_like(order).scatter_(0, order, rolled)


# --- The one rule -------------------------------------------------------------------------------


class _Pairs(NamedTuple):
    """Scores in normal form, all [*, N, M]; entries outside `positive` and `negative` are 0."""

    f: Tensor
    positive: Tensor
    negative: Tensor
    soft: Tensor | None
    log_weight: Tensor | None
    log_prior: Tensor | None
    rows: Tensor
    """Weights of the anchors [*, N], 0 for those that do not count."""

    def negative_mass(self) -> Tensor:
        """Log of each negative's mass; without `log_weight` they sum to 1."""
        return self._mass(self.negative)

    def candidate_mass(self) -> Tensor:
        """The same with the positives among the candidates, which have no `log_weight`."""
        return self._mass(self.positive | self.negative)

    def _mass(self, among: Tensor) -> Tensor:
        prior = torch.zeros_like(self.f) if self.log_prior is None else self.log_prior
        mass = prior - _log_sum_exp(prior.expand_as(self.f), among)[..., None]
        if self.log_weight is not None:
            mass = mass + self.log_weight.masked_fill(self.positive, 0)
        return mass

    def largest(self) -> Tensor:
        """Largest score of each anchor [*, N, 1], a constant."""
        f = self.f.detach().masked_fill(~(self.positive | self.negative), -math.inf)
        return f.amax(-1, keepdim=True).clamp_min(torch.finfo(f.dtype).min / 4)

    def joint(self, values: Tensor | None = None) -> Tensor:
        """E of values (f) over each anchor's positives, [*, N]."""
        return _mean(self.f if values is None else values, self.positive)

    def mean(self, values: Tensor) -> Tensor:
        """E⁻ of values over each anchor's negatives, [*, N]."""
        terms = (values * self.negative_mass().exp()).masked_fill(~self.negative, 0)
        return terms.sum(-1)

    def product(self, values: Tensor) -> Tensor:
        """Log E⁻ e^values over each anchor's negatives, [*, N]."""
        return _log_sum_exp(values + self.negative_mass(), self.negative)

    def log_partition(self, values: Tensor | None = None) -> Tensor:
        """The same over all anchors of a group, [*, 1]."""
        each = self.product(self.f if values is None else values)
        share = self.rows.clamp_min(torch.finfo(each.dtype).tiny).log()
        total = _log_sum_exp(each + share, self.rows > 0)
        return (total - self.rows.sum(-1).clamp_min(torch.finfo(each.dtype).tiny).log())[..., None]


class _Plain(NamedTuple):
    """The common case, many times faster: a square matrix, nothing masked, diagonal positives."""

    f: Tensor

    def joint(self, values: Tensor | None = None) -> Tensor:
        """E of values (f), [N]; as in `_Pairs`, like the others."""
        return (self.f if values is None else values).diagonal()

    def mean(self, values: Tensor) -> Tensor:
        """E⁻ of values, [N]."""
        return self._others(values, 0.0).sum(-1) / (len(values) - 1)

    def product(self, values: Tensor) -> Tensor:
        """Log E⁻ e^values, [N]."""
        others = self._others(values, -math.inf)
        return torch.logsumexp(others, -1) - math.log(len(values) - 1)

    def log_partition(self, values: Tensor | None = None) -> Tensor:
        """The same over all anchors, [1]."""
        each = self.product(self.f if values is None else values)
        return torch.logsumexp(each, -1, keepdim=True) - math.log(len(each))

    def _others(self, values: Tensor, instead: float) -> Tensor:
        diagonal = torch.eye(len(values), dtype=torch.bool, device=values.device)
        return values.masked_fill(diagonal, instead)


def _evaluate(
    name: str,
    value: Callable[[Any], Tensor],
    scores: Tensor | None,
    options: Options,
    soft: bool = False,
    one_sided: bool = False,
    plain: bool = True,
) -> Tensor:
    """`value` of `_Plain` or `_Pairs`, whichever the options need; of `_Pairs` if not `plain`."""
    if options.get("symmetric"):
        if scores is None or one_sided or options.get("log_prior") is not None:
            raise ValueError(
                f"{name}: `symmetric` needs a score matrix, and no argument that is about one side"
            )
        if options.get("reduction") == "none" and scores.shape[-1] != scores.shape[-2]:
            raise ValueError(f"{name}: `symmetric` pointwise terms need as many keys as anchors")
        targets = options.get("targets")
        if targets is not None and targets.shape != scores.shape:
            raise ValueError(f"{name}: `symmetric` needs `positives` instead of target indices")
        turned = _one_way(_transposed(options))
        both = [_evaluate(name, value, scores, _one_way(options), soft, plain=plain)]
        both.append(_evaluate(name, value, scores.mT, turned, soft, plain=plain))
        return 0.5 * (both[0] + both[1])
    if scores is not None and plain and _is_plain(scores, options):
        terms = value(_Plain(_float32(scores)))
        return _reduce(terms, None, None, options.get("reduction", "mean"))
    pairs = _normal_form(name, scores, options, soft)
    counted = pairs.rows > 0
    terms = value(pairs)
    terms = terms.masked_fill(~counted, 0)
    return _reduce(terms, counted, options.get("weight"), options.get("reduction", "mean"))


def _is_plain(scores: Tensor, options: Options) -> bool:
    square = scores.dim() == 2 and scores.shape[0] == scores.shape[1] > 1
    return square and all(
        v is None for k, v in options.items() if k not in ("reduction", "symmetric")
    )


def _one_way(options: Options) -> Options:
    return {**options, "symmetric": False}


def _transposed(options: Options) -> Options:
    """Options of the transposed problem; `mask` and `key_mask` change places."""
    turned: Options = {**options}
    for name in ("positives", "exclude", "log_weight", "targets"):
        given = options.get(name)
        if given is not None and given.dim() > 1:
            turned[name] = given.mT
    turned["mask"], turned["key_mask"] = options.get("key_mask"), options.get("mask")
    return turned


def _normal_form(name: str, scores: Tensor | None, options: Options, soft: bool) -> _Pairs:
    f, positive, targets = _scores_and_positives(name, scores, options)
    if targets is not None and not soft:
        raise ValueError(f"{name}: soft `targets` are for infonce; give `positives` or indices")
    candidates = torch.ones_like(positive)
    if (key_mask := options.get("key_mask")) is not None:
        candidates = candidates & key_mask[..., None, :]
    negative = candidates & ~positive
    positive = candidates & positive
    if (exclude := options.get("exclude")) is not None:
        negative = negative & ~exclude
    rows = positive.any(-1) & (negative.any(-1) | (targets is not None))
    if (mask := options.get("mask")) is not None:
        rows = rows & mask
    # A row that does not count becomes all zeros with everything allowed: finite, without gradient.
    positive, negative = positive & rows[..., None], negative & rows[..., None]
    f = f.masked_fill(~(positive | negative), 0)
    weight = rows.to(f.dtype)
    if (given := options.get("weight")) is not None:
        weight = weight * given
    log_weight = options.get("log_weight")
    if log_weight is not None and scores is None and log_weight.shape[-1] == f.shape[-1] - 1:
        log_weight = torch.nn.functional.pad(log_weight, (1, 0))
    prior = options.get("log_prior")
    if prior is not None and scores is None:
        raise ValueError(f"{name}: `log_prior` is about the columns of a score matrix")
    return _Pairs(f, positive, negative, targets, log_weight, prior, weight)


def _scores_and_positives(
    name: str, scores: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores [*, N, M], positives, and soft targets where given."""
    pos, neg = options.get("pos"), options.get("neg")
    positives, targets = options.get("positives"), options.get("targets")
    if (scores is None) == (pos is None or neg is None):
        raise ValueError(f"{name}: expected either `scores`, or both `pos` and `neg`")
    if scores is None:
        assert pos is not None and neg is not None
        if pos.shape != neg.shape[:-1]:
            raise ValueError(
                f"{name}: expected pos [*, N] and neg [*, N, K], got {tuple(pos.shape)} and "
                f"{tuple(neg.shape)}"
            )
        if positives is not None or targets is not None:
            raise ValueError(f"{name}: `pos` are the positives; drop `positives` and `targets`")
        f = _float32(torch.cat([pos[..., None], neg], -1))
        first = torch.arange(f.shape[-1], device=f.device) == 0
        exclude = options.get("exclude")
        if exclude is not None and exclude.shape[-1] == neg.shape[-1]:
            options["exclude"] = torch.nn.functional.pad(exclude, (1, 0))
        return f, first.expand_as(f), None
    f = _float32(scores)
    if f.dim() < 2:
        raise ValueError(f"{name}: expected scores [*, N, M], got {tuple(f.shape)}")
    if positives is not None and targets is not None:
        raise ValueError(f"{name}: expected `positives` or `targets`, not both")
    if positives is not None:
        return f, positives.expand_as(f), None
    if targets is not None and not targets.is_floating_point():
        if targets.shape != f.shape[:-1]:
            raise ValueError(f"{name}: expected target indices {tuple(f.shape[:-1])}")
        return f, targets[..., None] == torch.arange(f.shape[-1], device=f.device), None
    if targets is not None:
        return f, (targets > 0).expand_as(f), targets.expand_as(f)
    if f.shape[-1] < f.shape[-2]:
        raise ValueError(
            f"{name}: scores {tuple(f.shape)} have anchors without a diagonal; give `positives`"
        )
    return f, torch.eye(*f.shape[-2:], dtype=torch.bool, device=f.device).expand_as(f), None


def _reduce(
    terms: Tensor, mask: Tensor | None, weight: Tensor | None, reduction: Reduction
) -> Tensor:
    keep = torch.ones_like(terms) if mask is None else mask.to(terms.dtype).expand_as(terms)
    if weight is not None:
        keep = keep * weight
    terms = torch.where(keep != 0, terms * keep, 0)
    if reduction == "none":
        return terms
    if reduction == "sum":
        return terms.sum()
    if reduction != "mean":
        raise ValueError(f"expected reduction 'mean', 'sum' or 'none', got {reduction!r}")
    total = keep.sum()
    return terms.sum() / torch.where(total > 0, total, 1)


def _float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _log_sum_exp(x: Tensor, among: Tensor) -> Tensor:
    """Over the last dimension, of the entries in `among`; where there is none, 0 and constant."""
    some = among.any(-1, keepdim=True)
    return (
        torch.logsumexp(x.masked_fill(~among & some, -math.inf).masked_fill(~some, 0), -1)
        * (some[..., 0])
    )


def _log_mean_exp(x: Tensor, among: Tensor) -> Tensor:
    return _log_sum_exp(x, among) - among.sum(-1).clamp_min(1).to(x.dtype).log()


def _mean(x: Tensor, among: Tensor) -> Tensor:
    return x.masked_fill(~among, 0).sum(-1) / among.sum(-1).clamp_min(1)


def _leave_one_out(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of all [*, N], and of all but each [*, N, M].

    A difference of exponentials loses everything where one term dominates: that one term's rest is
    summed afresh.
    """
    total = _log_sum_exp(x, among)
    largest = x.masked_fill(~among, -math.inf).argmax(-1, keepdim=True)
    is_largest = torch.zeros_like(among).scatter(-1, largest, True)
    rest = among & ~is_largest
    floor = torch.finfo(x.dtype).min / 4
    without_largest = torch.where(rest.any(-1), _log_sum_exp(x, rest), floor)
    share = (x - total[..., None]).masked_fill(~rest, -1).exp()
    others = total[..., None] + torch.log1p(-share)
    return total, torch.where(is_largest, without_largest[..., None], others)


def _squared_distances(x: Tensor) -> Tensor:
    # Not cdist: its gradient is infinite at distance 0. A difference of squares needs all digits.
    with torch.autocast(x.device.type, enabled=False):
        x = x - x.mean(0)
        square = x.square().sum(-1)
        return (square[:, None] + square - 2 * x @ x.T).clamp_min(0)


def _gaussian_kernel(x: Tensor, width: float | None) -> Tensor:
    distance = _squared_distances(x)
    scale = 2 * width**2 if width else distance.detach().median().clamp_min(1e-12)
    return (-distance / scale).exp()

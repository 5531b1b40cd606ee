"""One call for people with data: which estimator, what value, how sure, and what to beware of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from mi.estimators import gaussian, knn
from mi.estimators.classifier import decoded_terms
from mi.estimators.conditional import ccmi
from mi.estimators.discrete import discrete, entropy
from mi.estimators.kernel import binned, kde
from mi.estimators.lnc import lnc
from mi.estimators.measures import (
    CONDITIONAL,
    MUTUAL,
    Estimate,
    Measure,
    dual_total,
    total,
    total_less_dual,
)
from mi.neural import LEARNT, cross_fitted, residual
from mi.result import Kind, MIResult

Array = Tensor | np.ndarray | Sequence[Any]
_TIES = 0.05
"""Share of repeated values from which a real column counts as mixed."""
_CHECKED = 10_000
"""Samples that the check of a copula looks at."""
_UNORDERED = {*LEARNT, "residual", "classifier", "ccmi"}
"""Estimators whose contributions are not in the order of the samples."""


class EstimatorInfo(NamedTuple):
    """A row of `list_estimators`."""

    name: str
    kind: Kind
    variables: str
    """What it takes: "real", "discrete", "real, discrete" for one of each, or "mixed"."""
    conditional: bool
    """Whether it also measures given a third variable, and total correlation."""
    formula: str
    reference: str


ESTIMATORS = {
    row.name: row
    for row in (
        EstimatorInfo("gaussian", "estimate", "real", True, "-½ Σ log(1-ρ_i²), bias removed",
                      "canonical correlations; Hotelling 1936"),
        EstimatorInfo("gaussian_copula", "estimate", "real", True, "the same of normal scores",
                      "Ince et al. 2017"),
        EstimatorInfo("student_copula", "estimate", "real", True,
                      "closed form of Student's t copula, ν by likelihood",
                      "Arellano-Valle et al. 2013"),
        EstimatorInfo("ksg", "estimate", "real", True, "ψ(k)+ψ(N)-<ψ(n_x)+ψ(n_y)>",
                      "Kraskov et al. 2004; Frenzel & Pompe 2007"),
        EstimatorInfo("ksg2", "estimate", "real", False, "ψ(k)-1/k+ψ(N)-<ψ(n_x)+ψ(n_y)>",
                      "Kraskov et al. 2004, eq. 9"),
        EstimatorInfo("lnc", "estimate", "real", False, "ksg - <log V_turned/V_box> where thin",
                      "Gao, Ver Steeg & Galstyan 2015"),
        EstimatorInfo("kde", "estimate", "real", True, "Σ ±E log p̂, leave-one-out Gaussian kernels",
                      "Beirlant et al. 1997"),
        EstimatorInfo("binned", "lower", "real", True, "miller_madow of bins of equal frequency",
                      "data processing; Miller 1955"),
        EstimatorInfo("mixed", "estimate", "mixed", True, "ksg, counting ties where there are",
                      "Gao et al. 2017; Mesner & Shalizi 2019"),
        EstimatorInfo("ross", "estimate", "real, discrete", False,
                      "ψ(N)+ψ(k)-<ψ(N_label)+ψ(n_x)>", "Ross 2014"),
        EstimatorInfo("classifier", "lower", "real, discrete", False,
                      "H(Y)+E log q(y|x), q cross-fitted", "Barber & Agakov 2003"),
        *(EstimatorInfo(name, "estimate", "discrete", True, "H(X)+H(Y)-H(X,Y)", reference)
          for name, reference in (
              ("plugin", "maximum likelihood"),
              ("miller_madow", "Miller 1955"),
              ("grassberger", "Grassberger 2003"),
              ("chao_shen", "Chao & Shen 2003"),
              ("nsb", "Nemenman, Shafee & Bialek 2002"))),
        EstimatorInfo("residual", "lower", "real", False,
                      "InfoNCE, f = copula's log-ratio + a network, cross-fitted",
                      "ours; van den Oord et al. 2018 for the bound"),
        *(EstimatorInfo(name, c.kind, "real", False, c.formula, c.reference)
          for name, (c, _) in LEARNT.items()),
        EstimatorInfo("ccmi", "estimate", "real", True,
                      "E f; f tells y from y of the nearest z by JSD, cross-fitted",
                      "Mukherjee, Asnani & Kannan 2020"),
    )
}  # fmt: skip


def list_estimators(
    kind: Kind | None = None, conditional: bool | None = None
) -> list[EstimatorInfo]:
    """What `estimate_mi` accepts as `estimator`, with formulas and references."""
    return [
        row
        for row in ESTIMATORS.values()
        if kind in (None, row.kind) and conditional in (None, row.conditional)
    ]


def estimate_mi(
    x: Array,
    y: Array,
    z: Array | None = None,
    estimator: str = "auto",
    *,
    quick: bool = False,
    neighbors: int = 5,
    level: float = 0.95,
    block: int = 1,
    seed: int = 0,
) -> MIResult:
    """I(X; Y), or I(X; Y | Z), from independent samples.

    `auto` looks at the data. Integers are discrete: Miller-Madow, or Chao-Shen where cells are
    many. A real against a discrete variable: Ross in up to 4 dimensions, a cross-fitted classifier
    beyond. Reals with ties: the mixed nearest-neighbour estimate. Other reals: Student's t copula,
    checked by nearest neighbours on the data and on samples of that copula: where the two differ
    by more than chance, the difference, in which most of the neighbours' bias cancels, is added.
    There, in more than 3 dimensions, and always in more than 6, a network then learns what the
    copula misses, cross-fitted; if held-out samples confirm it (a quarter of them first) and its
    value, a lower bound, is the higher one (both err downwards), that is the answer.

    The interval is of the sampling error. Where `auto` has refuted the copula, it reaches further,
    as far as the value would go if it went on from half of the samples to all and beyond: with the
    neighbours' distance, N^(-1/d), or with 1/√N, for a network. Where densities have edges in many
    dimensions, even that is too little; and in more than 10 nobody may have noticed that a copula
    is wrong. Warnings say so.

    Args:
        x: [N] or [N, d]; integers (or booleans) are discrete, floats are real.
        y: [N] or [N, e].
        z: what is given, [N] or [N, f].
        estimator: `auto` or a name of `list_estimators()`.
        quick: `auto` trains no network.
        neighbors: k of the nearest-neighbour estimators.
        level: of the confidence interval.
        block: samples in a row that depend on each other, of a time series: the standard error is
            the moving-block bootstrap's. Learnt estimators say that they cannot.
        seed: of everything random; global generators are left alone.

    Raises:
        ValueError: names the variable with non-finite or constant columns, shapes that do not fit,
            or an estimator that cannot take these variables.
    """
    names = ("x", "y") if z is None else ("x", "y", "z")
    given = (x, y) if z is None else (x, y, z)
    measure = MUTUAL if z is None else CONDITIONAL
    return _measure(given, names, measure, estimator, neighbors, level, seed, quick, block)


def total_correlation(
    variables: Sequence[Array],
    estimator: str = "auto",
    *,
    neighbors: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> MIResult:
    """KL(p(x_1 … x_m) ‖ Π p(x_i)): what all variables tell about each other; as `estimate_mi`."""
    names = _names("total_correlation", variables, 2)
    return _measure(variables, names, total(len(variables)), estimator, neighbors, level, seed)


def dual_total_correlation(
    variables: Sequence[Array],
    estimator: str = "auto",
    *,
    neighbors: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> MIResult:
    """H(X) - Σ H(x_i | the others): what the variables share, counted once; as `estimate_mi`."""
    names = _names("dual_total_correlation", variables, 2)
    return _measure(variables, names, dual_total(len(variables)), estimator, neighbors, level, seed)


def o_information(
    variables: Sequence[Array],
    estimator: str = "auto",
    *,
    neighbors: int = 5,
    level: float = 0.95,
    seed: int = 0,
) -> MIResult:
    """Total less dual total correlation: above 0 redundancy, below 0 synergy; as `estimate_mi`.

    Rosas et al. 2019. Of three variables it is minus the interaction information.
    """
    names = _names("o_information", variables, 3)
    measure = total_less_dual(len(variables))
    return _measure(variables, names, measure, estimator, neighbors, level, seed)


def interaction_information(
    x: Array, y: Array, z: Array, estimator: str = "auto", **options: Any
) -> MIResult:
    """I(X; Y | Z) - I(X; Y): above 0 is synergy (exclusive or: log 2), below 0 redundancy.

    McGill's sign; co-information is its negative. Arguments as `estimate_mi`.
    """
    given = estimate_mi(x, y, z, estimator, **options)
    plain = estimate_mi(x, y, None, estimator, **options)
    stderr = math.hypot(given.stderr, plain.stderr)
    half = (given.interval[1] - given.value) / given.stderr * stderr if given.stderr else 0.0
    value = given.value - plain.value
    return MIResult(
        value, stderr, (value - half, value + half), "estimate",
        " - ".join(dict.fromkeys((given.estimator, plain.estimator))),
        tuple(dict.fromkeys(given.warnings + plain.warnings)),
        {"conditional": given.value, "unconditional": plain.value},
    )  # fmt: skip


def transfer_entropy(
    source: Array,
    target: Array,
    k: int = 1,
    l: int = 1,  # noqa: E741
    estimator: str = "auto",
    *,
    block: int | None = None,
    **options: Any,
) -> MIResult:
    """I(target_{t+1}; k past steps of source | l past steps of target), in nats per step.

    Schreiber 2000.

    Args:
        source: [T] or [T, d].
        target: [T] or [T, e].
        k: steps of the source.
        l: steps of the target.
        estimator: as in `estimate_mi`, like the other options.
        block: steps that depend on each other, for the standard error; None takes T^(1/3).
        options: of `estimate_mi`.
    """
    source, target = _array(source, "source"), _array(target, "target")
    if len(source) != len(target) or min(k, l) < 1 or len(source) <= max(k, l) + 1:
        raise ValueError(
            f"transfer_entropy: expected series of one length T > max(k, l) + 1 and k, l >= 1, got "
            f"{len(source)}, {len(target)}, k={k}, l={l}"
        )
    first, end = max(k, l), len(source)

    def past(series: np.ndarray, steps: int) -> np.ndarray:
        series = series.reshape(end, -1)
        return np.concatenate([series[first - 1 - i : end - 1 - i] for i in range(steps)], 1)

    following = target.reshape(end, -1)[first:]
    block = round(end ** (1 / 3)) if block is None else block
    given = past(target, l)
    return estimate_mi(following, past(source, k), given, estimator, block=block, **options)


def _names(function: str, variables: Sequence[Array], least: int) -> tuple[str, ...]:
    if len(variables) < least:
        raise ValueError(f"{function}: expected at least {least} variables, got {len(variables)}")
    return tuple(f"variables[{i}]" for i in range(len(variables)))


class _Variable(NamedTuple):
    data: np.ndarray
    """Codes int [N], or reals [N, d]."""
    discrete: bool
    tied: bool


def _array(values: Array, name: str) -> np.ndarray:
    array = values.detach().cpu() if isinstance(values, Tensor) else values
    if isinstance(array, Tensor):
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    array = np.asarray(array)
    if array.dtype.kind not in "iubf" or array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"{name}: expected numbers [N] or [N, d], got {array.dtype} {list(array.shape)}"
        )
    return array


def _variable(values: Array, name: str) -> _Variable:
    array = _array(values, name)
    flat = array.reshape(len(array), -1)
    if array.dtype.kind == "f" and not np.isfinite(flat).all():
        column = int(np.flatnonzero(~np.isfinite(flat).all(0))[0])
        raise ValueError(f"{name}: column {column} holds values that are not finite")
    constant = np.flatnonzero((flat == flat[0]).all(0))
    if len(constant):
        raise ValueError(f"{name}: column {constant[0]} is constant and tells nothing; drop it")
    if array.dtype.kind != "f":
        return _Variable(np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1), True, False)
    flat = flat.astype(np.float64)
    repeated = 1 - min(len(np.unique(c)) for c in flat.T) / len(flat)
    return _Variable(flat, False, repeated > _TIES)


def _measure(
    given: Sequence[Array],
    names: Sequence[str],
    measure: Measure,
    estimator: str,
    neighbors: int,
    level: float,
    seed: int,
    quick: bool = False,
    block: int = 1,
) -> MIResult:
    variables = [_variable(v, n) for v, n in zip(given, names, strict=True)]
    sizes = [len(v.data) for v in variables]
    if len(set(sizes)) > 1:
        raise ValueError(f"expected as many samples of each variable, got {sizes}")
    if sizes[0] < 4 * neighbors:
        raise ValueError(f"expected at least {4 * neighbors} samples, got {sizes[0]}")
    if not 1 <= block <= sizes[0] // 2:
        raise ValueError(f"block: expected 1 to half of the {sizes[0]} samples, got {block}")
    warnings = [
        f"{name}: {_TIES:.0%} of the values or more repeat; taken for a mixture of atoms and reals"
        for v, name in zip(variables, names, strict=True)
        if v.tied
    ]
    chosen = _route(variables, measure) if estimator == "auto" else estimator
    if chosen != "copula + ksg":
        _check_fit(chosen, variables, measure)
    diagnostics: dict[str, float] = {}
    if chosen in LEARNT:
        x, y = (gaussian.normal_scores(v.data) for v in variables)
        learnt, found = cross_fitted(chosen, x, y, seed)
        warnings += learnt
    else:
        found = _run(chosen, variables, measure, neighbors, seed, diagnostics)
    if chosen == "copula + ksg" and not diagnostics["rejected"]:
        chosen = "student_copula"
    if estimator == "auto" and chosen in ("student_copula", "copula + ksg") and not quick:
        blocks = [v.data for v in variables]
        width = sum(b.shape[1] for b in blocks)
        doubtful = diagnostics["rejected"] and width > 3
        # In many dimensions neighbours are too far away to contradict anything.
        if measure == MUTUAL and (doubtful or width > 6):
            scores = [gaussian.normal_scores(b) for b in blocks]
            better, gain = residual(scores[0], scores[1], seed, gate=True)
            diagnostics.update(network=better.value, network_gain=gain)
            if gain > 0 and better.value > found.value:
                found, chosen = better, "residual"
        if chosen == "student_copula" and width > 10:
            warnings.append(
                f"{width} dimensions: nothing contradicts an elliptical copula, but beyond 10 a "
                "dependence of another shape can stay unseen; the interval holds if there is none"
            )
    width = sum(1 if v.discrete else v.data.shape[1] for v in variables)
    if chosen == "binned" and 5 * 2.0**width > sizes[0]:
        warnings.append(
            f"binned: {width} dimensions of 2 bins are more cells than a fifth of the {sizes[0]} "
            "samples; the value is too high and no lower bound"
        )
    if chosen == "ksg" and any(v.tied for v in variables):
        warnings.append("ksg assumes that no values repeat; use estimator='mixed'")
    stderr = found.block_stderr(block)
    if block > 1 and chosen in _UNORDERED:
        warnings.append(f"{chosen}: the standard error takes samples for independent, not blocks")
        stderr = found.stderr
    half = float(special.ndtri(0.5 + level / 2)) * stderr
    if found.value < -2 * stderr - 1e-9:
        warnings.append("the value is below 0 beyond its error: the estimator is biased here")
    kind = ESTIMATORS[chosen].kind if chosen in ESTIMATORS else "estimate"
    if abs(found.drift) > half:
        warnings.append(
            f"biased: the value moves with the number of samples, by {found.drift:+.2f} nats or "
            "more if it goes on; the interval allows for that much"
        )
    interval = (found.value - half + min(found.drift, 0), found.value + half + max(found.drift, 0))
    return MIResult(found.value, stderr, interval, kind, chosen, tuple(warnings), diagnostics)


def _route(variables: list[_Variable], measure: Measure) -> str:
    if all(v.discrete for v in variables):
        cells = math.prod(int(v.data.max()) + 1 for v in variables)
        return "miller_madow" if len(variables[0].data) > 5 * cells else "chao_shen"
    some_discrete = [v for v in variables if v.discrete]
    if any(v.tied for v in variables):
        return "mixed"
    if some_discrete and measure == MUTUAL:
        (real,) = [v for v in variables if not v.discrete]
        return "ross" if real.data.shape[1] <= 4 else "classifier"
    return "mixed" if some_discrete else "copula + ksg"


def _check_fit(name: str, variables: list[_Variable], measure: Measure) -> None:
    if name not in ESTIMATORS:
        raise ValueError(f"estimator: expected 'auto' or one of {list(ESTIMATORS)}, got {name!r}")
    info = ESTIMATORS[name]
    kinds = sorted("discrete" if v.discrete else "real" for v in variables)
    fits = {
        "mixed": True,
        "real": "discrete" not in kinds,
        "discrete": "real" not in kinds,
        "real, discrete": kinds == ["discrete", "real"],
    }
    if not fits[info.variables] or (measure != MUTUAL and not info.conditional):
        what = "two variables" if not info.conditional else "variables"
        raise ValueError(
            f"estimator {name!r} takes {what} of kind {info.variables}, got {', '.join(kinds)}; "
            "integers are discrete, floats are real"
        )
    if name == "ccmi" and measure != CONDITIONAL:
        raise ValueError("estimator 'ccmi' is about three variables, x and y given z; pass z")


def _run(
    name: str,
    variables: list[_Variable],
    measure: Measure,
    neighbors: int,
    seed: int,
    diagnostics: dict[str, float],
) -> Estimate:
    info = ESTIMATORS.get(name)
    if info is not None and info.variables == "discrete":
        return discrete([v.data for v in variables], measure, name)  # type: ignore[arg-type]
    if info is not None and info.variables == "real, discrete":
        labels, reals = sorted(variables, key=lambda v: not v.discrete)
        points = (reals.data - reals.data.mean(0)) / reals.data.std(0)
        if name == "ross":
            return knn.ross(points, labels.data, neighbors)
        return _classifier(points, labels.data, seed, diagnostics)
    if name == "mixed":
        return knn.knn([_metric_space(v) for v in variables], measure, neighbors, "chebyshev")
    blocks = [v.data for v in variables]
    if name == "residual":
        x, y = (gaussian.normal_scores(b) for b in blocks)
        found, diagnostics["network_gain"] = residual(x, y, seed)
        return found
    if name == "ccmi":
        x, y, z = (gaussian.normal_scores(b) for b in blocks)
        return ccmi(x, y, z, seed)
    if name == "copula + ksg":
        return _checked_copula(blocks, measure, neighbors, seed, diagnostics)
    if name == "ksg":
        return knn.knn([(b - b.mean(0)) / b.std(0) for b in blocks], measure, neighbors)
    if name in ("lnc", "kde"):
        scaled = [(b - b.mean(0)) / b.std(0) for b in blocks]
        return lnc(scaled, measure, neighbors) if name == "lnc" else kde(scaled, measure)
    if name == "binned":
        return binned(blocks, measure)
    if name == "ksg2":
        x, y = ((b - b.mean(0)) / b.std(0) for b in blocks)
        return knn.ksg2(x, y, neighbors)
    closed_form: Callable[..., Estimate] = getattr(gaussian, name)
    return closed_form(blocks, measure)


def _metric_space(v: _Variable) -> np.ndarray:
    """Columns [N, d] whose distances make sense; unequal labels are far apart."""
    if v.discrete:
        return v.data[:, None] * 1e6
    return (v.data - v.data.mean(0)) / v.data.std(0)


def _classifier(
    x: np.ndarray, labels: np.ndarray, seed: int, diagnostics: dict[str, float]
) -> Estimate:
    counts = np.bincount(labels)
    one_hot = functional.one_hot(torch.from_numpy(labels)).float()
    nats, right = decoded_terms(torch.from_numpy(x).float(), one_hot, seed=seed)
    # Those terms are relative to uniform labels.
    pointwise = nats.double().numpy() - math.log(len(counts)) + entropy(counts)
    diagnostics["accuracy"] = right.mean().item()
    return Estimate(float(pointwise.mean()), pointwise)


def _checked_copula(
    blocks: list[np.ndarray], measure: Measure, k: int, seed: int, diagnostics: dict[str, float]
) -> Estimate:
    """The likeliest elliptical copula's value, corrected where nearest neighbours contradict it."""
    copula = gaussian.fit_copula(np.concatenate(blocks, 1))
    model = gaussian.student_copula(blocks, measure, copula)
    rng, n = np.random.default_rng(seed), len(blocks[0])
    rows = np.sort(rng.permutation(n)[:_CHECKED])  # in order, for errors of time series
    ends = np.cumsum([b.shape[1] for b in blocks])[:-1]
    scores = [gaussian.normal_scores(b[rows]) for b in blocks]
    samples = np.split(copula.sample(len(rows), rng), ends, 1)
    data, imagined = knn.knn(scores, measure, k), knn.knn(samples, measure, k)
    shift, noise = data.value - imagined.value, math.hypot(data.stderr, imagined.stderr)
    rejected = abs(shift) > 3 * noise
    diagnostics.update(copula=model.value, dof=copula.dof, ksg=data.value)
    diagnostics.update(ksg_of_copula=imagined.value, rejected=float(rejected))
    if not rejected:
        return model
    halves = [
        knn.knn([b[i::2] for b in v], measure, k).value for v in (scores, samples) for i in (0, 1)
    ]
    # Where densities have edges, the error falls as the neighbours' distance, N^(-1/d).
    gained = shift - (halves[0] + halves[1] - halves[2] - halves[3]) / 2
    drift = gained / (2 ** (1 / copula.correlation.shape[0]) - 1)
    floor = math.hypot(imagined.stderr, data.floor)
    return Estimate(model.value + shift, data.pointwise, floor, drift)

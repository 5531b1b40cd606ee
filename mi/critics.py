"""Critics f(x, y), which score how much pairs belong together, and decoders q(y|x).

Both answer two questions: `forward(x, y)` is about pairs, [*, d], [*, e] -> [*]; `pairwise(x, y)`
about all combinations, [N, d], [M, e] -> [N, M], without repeating what depends on one side only.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from mi.estimators import gaussian


def mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    layers: int = 2,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """`layers` hidden layers of width `hidden`."""
    sizes = [inputs, *[hidden] * layers]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), activation()]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))


def full(x: Tensor) -> Tensor:
    """In float32 at least: densities need more digits than autocast leaves them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Critic(nn.Module):
    """Scores of pairs; see the module's docstring."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        raise NotImplementedError

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]; x [N, d] or [*, N, d] against y [M, e] or [*, M, e]."""
        raise NotImplementedError


class SeparableCritic(Critic):
    """Similarity of embeddings g(x), h(y): N + M network evaluations for N M scores.

    Args:
        x_size: d.
        y_size: e.
        hidden: width of both networks.
        embedding: size of both embeddings.
        similarity: `dot`, `cosine`, or `neg_l2` (negative squared distance).
        temperature: divides the similarity; learnt.
        activation: of both networks; a smooth one suits smooth densities.
    """

    def __init__(
        self,
        x_size: int,
        y_size: int,
        hidden: int = 128,
        embedding: int = 32,
        similarity: Literal["dot", "cosine", "neg_l2"] = "dot",
        temperature: float = 1.0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if similarity not in ("dot", "cosine", "neg_l2"):
            raise ValueError(f"similarity: expected dot, cosine or neg_l2, got {similarity!r}")
        self.similarity = similarity
        self.encode_x, self.encode_y = (
            mlp(size, hidden, embedding, activation=activation) for size in (x_size, y_size)
        )
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def embed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [*, embedding] of both, normalised if the similarity is the cosine."""
        g, h = self.encode_x(x), self.encode_y(y)
        if self.similarity == "cosine":
            return functional.normalize(g, dim=-1), functional.normalize(h, dim=-1)
        return g, h

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        g, h = self.embed(x, y)
        score = -(g - h).square().sum(-1) if self.similarity == "neg_l2" else (g * h).sum(-1)
        return score / self.log_temperature.exp()

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        g, h = self.embed(x, y)
        if self.similarity != "neg_l2":
            return g @ h.mT / self.log_temperature.exp()
        with torch.autocast(x.device.type, enabled=False):  # differences of squares need all digits
            g, h = full(g), full(h)
            square = g.square().sum(-1)[..., None] + h.square().sum(-1)[..., None, :]
            return (2 * g @ h.mT - square) / self.log_temperature.exp()


class GatedCritic(Critic):
    """A product of embeddings with a support (ours): e^f = e^{g(x)·h(y)} σ(u(x)·v(y) + b).

    Where a density ends the log-ratio falls off a cliff, for which a sum of products needs very
    many terms, and the sigmoid few. As cheap as a separable one: N + M network evaluations.

    Args:
        x_size: d.
        y_size: e.
        hidden: width of both networks.
        embedding: size of g and h.
        gate: size of u and v.
    """

    def __init__(
        self, x_size: int, y_size: int, hidden: int = 128, embedding: int = 32, gate: int = 4
    ) -> None:
        super().__init__()
        self.sizes = [embedding, gate]
        self.encode_x, self.encode_y = (
            mlp(size, hidden, embedding + gate, activation=nn.SiLU) for size in (x_size, y_size)
        )
        self.offset = nn.Parameter(torch.tensor(2.0))  # open at first, σ(2) = 0.88

    def embed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings g [*, embedding], u [*, gate] of x, and h, v of y."""
        g, u = self.encode_x(x).split(self.sizes, -1)
        h, v = self.encode_y(y).split(self.sizes, -1)
        return g, u, h, v

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        g, u, h, v = self.embed(x, y)
        return (g * h).sum(-1) + functional.logsigmoid((u * v).sum(-1) + self.offset)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        g, u, h, v = self.embed(x, y)
        return g @ h.mT + functional.logsigmoid(u @ v.mT + self.offset)


class BilinearCritic(Critic):
    """xᵀ W y; CURL's and ACORM's critic on embeddings."""

    def __init__(self, x_size: int, y_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(x_size, y_size) / math.sqrt(x_size))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        return ((x @ self.weight) * y).sum(-1)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        return x @ self.weight @ y.mT


class ConcatCritic(Critic):
    """A network of [x, y]: the most general. Its first layer is a sum, W_x x + W_y y + b.

    Args:
        x_size: d.
        y_size: e.
        hidden: width.
        layers: hidden layers.
    """

    def __init__(self, x_size: int, y_size: int, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.from_x, self.from_y = nn.Linear(x_size, hidden), nn.Linear(y_size, hidden, bias=False)
        self.head = (
            nn.Sequential(nn.ReLU(), mlp(hidden, hidden, 1, layers - 1))
            if layers > 1
            else (nn.Sequential(nn.ReLU(), nn.Linear(hidden, 1)))
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        return self.head(self.from_x(x) + self.from_y(y))[..., 0]

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        return self.head(self.from_x(x)[..., :, None, :] + self.from_y(y)[..., None, :, :])[..., 0]


class RelationCritic(Critic):
    """A network of a symmetric summary of both: does x belong with y? Both of one size.

    Patacchiola & Storkey 2020; sums, means and maxima do not depend on the order of the two.

    Args:
        size: d, of x and of y.
        hidden: width.
        aggregate: `sum`, `mean`, `max`, or `concat`, which does depend on it.
    """

    def __init__(
        self,
        size: int,
        hidden: int = 128,
        aggregate: Literal["sum", "mean", "max", "concat"] = "sum",
    ) -> None:
        super().__init__()
        if aggregate not in ("sum", "mean", "max", "concat"):
            raise ValueError(f"aggregate: expected sum, mean, max or concat, got {aggregate!r}")
        self.aggregate = aggregate
        self.head = mlp(2 * size if aggregate == "concat" else size, hidden, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        if self.aggregate == "concat":
            both = torch.cat(torch.broadcast_tensors(x, y), -1)
        elif self.aggregate == "max":
            both = torch.maximum(x, y)
        else:
            both = (x + y) / (2 if self.aggregate == "mean" else 1)
        return self.head(both)[..., 0]

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        return self(x[..., :, None, :], y[..., None, :, :])


class MaxMin(nn.Module):
    """Sorts neighbouring pairs: a gradient-norm-preserving activation (Anil et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2k] -> [..., 2k]."""
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], -1)


class LipschitzCritic(Critic):
    """|f(x, y) - f(x', y')| <= ‖[x, y] - [x', y']‖ by construction, for `functional.wasserstein`.

    Spectral normalisation, and an activation that keeps the norm of gradients. Five power
    iterations, because one falls behind an optimiser that is quick: measured, by 7 %.

    Args:
        x_size: d.
        y_size: e.
        hidden: width of the two hidden layers, even.
    """

    def __init__(self, x_size: int, y_size: int, hidden: int = 128) -> None:
        super().__init__()
        self.split = x_size
        sizes = (x_size + y_size, hidden, hidden, 1)
        self.first, self.second, self.last = (
            spectral_norm(nn.Linear(a, b), n_power_iterations=5)
            for a, b in itertools.pairwise(sizes)
        )
        self.activation = MaxMin()

    def _head(self, hidden: Tensor) -> Tensor:
        return self.last(self.activation(self.second(self.activation(hidden))))[..., 0]

    def _first(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        weight: Tensor = self.first.weight  # type: ignore[assignment]  # normalised when it is read
        from_x, from_y = weight.split([self.split, weight.shape[1] - self.split], 1)
        return functional.linear(x, from_x, self.first.bias), functional.linear(y, from_y)  # type: ignore[arg-type]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        from_x, from_y = self._first(x, y)
        return self._head(from_x + from_y)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        from_x, from_y = self._first(x, y)
        return self._head(from_x[..., :, None, :] + from_y[..., None, :, :])


class CopulaCritic(Critic):
    """Log-density ratio of an elliptical copula (Gaussian or Student's t) fitted in closed form.

    Exact where the copula is; elsewhere what a `ResidualCritic` starts from. No parameters.

    Args:
        x: samples [N, d].
        y: their partners [N, e].
    """

    sorted: Tensor
    scores: Tensor
    precision_x: Tensor
    precision_y: Tensor
    precision: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        data = torch.cat([x, y], 1).detach().cpu().double().numpy()
        self.split, total = x.shape[1], data.shape[1]
        copula = gaussian.fit_copula(data)
        self.dof = copula.dof
        grid = (np.arange(len(data)) + 0.5) / len(data)
        normal = math.isinf(copula.dof)
        scores = special.ndtri(grid) if normal else special.stdtrit(copula.dof, grid)
        r, d = copula.correlation, self.split
        parts = {
            "sorted": np.sort(data, 0).T.copy(), "scores": scores, "precision": np.linalg.inv(r),
            "precision_x": np.linalg.inv(r[:d, :d]), "precision_y": np.linalg.inv(r[d:, d:]),
        }  # fmt: skip
        for name, value in parts.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=x.dtype, device=x.device))
        dets = [np.linalg.slogdet(m)[1] for m in (r, r[:d, :d], r[d:, d:])]
        self.constant = float(-0.5 * (dets[0] - dets[1] - dets[2]))
        if not normal:
            g = special.gammaln
            half = copula.dof / 2
            self.constant += float(
                g(half + total / 2) + g(half) - g(half + d / 2) - g(half + (total - d) / 2)
            )

    def _scores(self, values: Tensor, first: int) -> Tensor:
        """Columns as copula scores, interpolated between the fitted samples' ranks, [*, d]."""
        flat = values.reshape(-1, values.shape[-1]).T.contiguous()
        table = self.sorted[first : first + len(flat)].contiguous()
        right = torch.searchsorted(table, flat).clamp(1, table.shape[1] - 1)
        low, high = table.gather(1, right - 1), table.gather(1, right)
        share = ((flat - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        score = torch.lerp(self.scores[right - 1], self.scores[right], share)
        return score.T.reshape(values.shape)

    def _ratio(self, own_x: Tensor, own_y: Tensor, joint: Tensor, d: int, e: int) -> Tensor:
        if math.isinf(self.dof):
            return self.constant + 0.5 * (own_x + own_y - joint)
        nu = self.dof
        return (
            self.constant - 0.5 * (nu + d + e) * torch.log1p(joint / nu)
            + 0.5 * (nu + d) * torch.log1p(own_x / nu) + 0.5 * (nu + e) * torch.log1p(own_y / nu)
        )  # fmt: skip

    def _parts(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        d = self.split
        x, y = self._scores(x, 0), self._scores(y, d)

        def form(v: Tensor, matrix: Tensor) -> Tensor:
            return ((v @ matrix) * v).sum(-1)

        inner = form(x, self.precision[:d, :d]), form(y, self.precision[d:, d:])
        return (
            x @ self.precision[:d, d:],
            y,
            *inner,
            form(x, self.precision_x),
            form(y, self.precision_y),
        )

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        turned, score, in_x, in_y, own_x, own_y = self._parts(x, y)
        joint = in_x + in_y + 2 * (turned * score).sum(-1)
        return self._ratio(own_x, own_y, joint, x.shape[-1], y.shape[-1])

    @torch.no_grad()
    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        turned, score, in_x, in_y, own_x, own_y = self._parts(x, y)
        joint = in_x[..., None] + in_y[..., None, :] + 2 * turned @ score.mT
        return self._ratio(own_x[..., None], own_y[..., None, :], joint, x.shape[-1], y.shape[-1])


class ResidualCritic(Critic):
    """base(x, y) + c · network(x, y), where c starts at 0: learning can only leave what is known.

    Args:
        base: e.g. a `CopulaCritic`.
        network: another critic.
    """

    def __init__(self, base: Critic, network: Critic) -> None:
        super().__init__()
        self.base, self.network = base, network
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        return self.base(x, y) + self.gain * self.network(x, y)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        return self.base.pairwise(x, y) + self.gain * self.network.pairwise(x, y)


class CanonicalCritic(Critic):
    """A separable network of canonical variates and of each side's Mahalanobis norm.

    Variates are scaled by their correlations (+ 0.2), so that in many dimensions the network looks
    first where there is something to see; on the norms elliptical copulas depend, and whatever
    changes with the distance from the centre.

    Args:
        x: samples [N, d], centred, by which variates are fitted.
        y: their partners [N, e].
        hidden: width of both networks.
        embedding: size of both embeddings.
    """

    turn_x: Tensor
    turn_y: Tensor
    white_x: Tensor
    white_y: Tensor

    def __init__(self, x: Tensor, y: Tensor, hidden: int = 128, embedding: int = 32) -> None:
        super().__init__()
        white = []
        for v in (x.double(), y.double()):
            values, vectors = torch.linalg.eigh(torch.cov(v.T).reshape(v.shape[1], -1))
            white.append(vectors / (values + 1e-4 * values[-1]).sqrt())
        across = white[0].T @ x.double().T @ y.double() @ white[1] / len(x)
        left, rho, right = torch.linalg.svd(across)
        for name, matrix, turn in zip("xy", white, (left, right.T), strict=True):
            weight = nn.functional.pad(rho, (0, len(turn) - len(rho))) + 0.2
            self.register_buffer(f"turn_{name}", (matrix @ turn * (weight / weight[0])).to(x.dtype))
            self.register_buffer(f"white_{name}", matrix.to(x.dtype))
        self.network = SeparableCritic(
            x.shape[1] + 1, y.shape[1] + 1, hidden, embedding, activation=nn.SiLU
        )

    def _features(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def features(v: Tensor, turn: Tensor, white: Tensor) -> Tensor:
            d = v.shape[-1]
            norm = ((v @ white).square().sum(-1, keepdim=True) - d) / math.sqrt(2 * d)
            return torch.cat([v @ turn, norm], -1)

        return features(x, self.turn_x, self.white_x), features(y, self.turn_y, self.white_y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        return self.network(*self._features(x, y))

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        return self.network.pairwise(*self._features(x, y))


class EnsembleCritic(Critic):
    """Mean of critics."""

    def __init__(self, critics: list[Critic]) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        return torch.stack([c(x, y) for c in self.critics]).mean(0)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        return torch.stack([c.pairwise(x, y) for c in self.critics]).mean(0)  # type: ignore[operator]


class SumCritic(EnsembleCritic):
    """Sum of critics: a product of density ratios."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """F of pairs, [*]."""
        return len(self.critics) * super().forward(x, y)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """F of all combinations, [N, M]."""
        return len(self.critics) * super().pairwise(x, y)


class Decoder(Critic):
    """A conditional density: f(x, y) = log q(y|x), trained by maximum likelihood."""


class GaussianDecoder(Decoder):
    """N(μ(x), diag σ(x)²) [nats].

    The deviation passes a softplus and has no ceiling: one that saturates, as a tanh does, makes
    upper bounds negative.

    Args:
        x_size: d; 0 for a density of y alone.
        y_size: e.
        hidden: width of the network.
        min_std: smallest deviation, in the unit of y.
        std: of all y, instead of a learnt one: the likelihood is then a squared error.
    """

    def __init__(
        self,
        x_size: int,
        y_size: int,
        hidden: int = 128,
        min_std: float = 1e-3,
        std: float | None = None,
    ) -> None:
        super().__init__()
        self.min_std, self.std = min_std, std
        self.network = mlp(x_size, hidden, 2 * y_size if std is None else y_size)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of y, [*, e] each."""
        if self.std is not None:
            mean = full(self.network(x))
            return mean, torch.full_like(mean, self.std)
        mean, raw = full(self.network(x)).chunk(2, -1)
        return mean, self.min_std + functional.softplus(raw)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y|x), [*]."""
        mean, std = self.moments(x)
        return (-0.5 * ((y - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(
            -1
        )

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y_j | x_i), [N, M], by matrix products."""
        mean, std = self.moments(x)
        with torch.autocast(x.device.type, enabled=False):  # differences of squares need all digits
            y = full(y)
            weight = std.square().reciprocal()
            constant = (mean.square() * weight + 2 * std.log() + math.log(2 * math.pi)).sum(-1)
            square = weight @ y.square().mT - 2 * (weight * mean) @ y.mT
            return -0.5 * (square + constant[..., None])


class MixtureDecoder(Decoder):
    """A mixture of diagonal Gaussians whose weights, means and deviations depend on x.

    Args:
        x_size: d.
        y_size: e.
        components: of the mixture.
        hidden: width of the network.
        min_std: smallest deviation, in the unit of y.
    """

    def __init__(
        self,
        x_size: int,
        y_size: int,
        components: int = 8,
        hidden: int = 128,
        min_std: float = 1e-3,
    ) -> None:
        super().__init__()
        self.network = mlp(x_size, hidden, components * (2 * y_size + 1))
        self.components, self.min_std = components, min_std

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y|x), [*]."""
        raw = full(self.network(x)).unflatten(-1, (self.components, -1))
        weight, (mean, std) = raw[..., 0].log_softmax(-1), raw[..., 1:].chunk(2, -1)
        std = self.min_std + functional.softplus(std)
        log_p = -0.5 * ((y[..., None, :] - mean) / std).square() - std.log()
        log_p = log_p.sum(-1) - 0.5 * y.shape[-1] * math.log(2 * math.pi)
        return torch.logsumexp(weight + log_p, -1)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y_j | x_i), [N, M]."""
        return self(x[..., :, None, :], y[..., None, :, :])


class CategoricalDecoder(Decoder):
    """Classes y, int64 [*].

    Args:
        x_size: d.
        classes: C.
        hidden: width of the network.
    """

    def __init__(self, x_size: int, classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.network = mlp(x_size, hidden, classes)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y|x), [*]."""
        return full(self.network(x)).log_softmax(-1).gather(-1, y[..., None])[..., 0]

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y_j | x_i), [N, M]."""
        log_q = full(self.network(x)).log_softmax(-1)
        return log_q.gather(-1, y[..., None, :].expand(*log_q.shape[:-1], y.shape[-1]))


class BernoulliDecoder(Decoder):
    """Independent bits y, [*, e] of 0 and 1.

    Args:
        x_size: d.
        bits: e.
        hidden: width of the network.
    """

    def __init__(self, x_size: int, bits: int, hidden: int = 128) -> None:
        super().__init__()
        self.network = mlp(x_size, hidden, bits)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y|x), [*]."""
        logit = full(self.network(x))
        return (functional.logsigmoid(logit) - (1 - y) * logit).sum(-1)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y_j | x_i), [N, M]."""
        logit = self.network(x)
        return functional.logsigmoid(logit).sum(-1)[..., None] - logit @ (1 - y).mT


def log_bessel(order: float, x: Tensor) -> Tensor:
    """Log I_ν(x) - x, the modified Bessel function of any order ν >= 0, x > 0; differentiable.

    Debye's expansion 14 orders higher, where four terms give 1e-6, and down from there by ratios of
    neighbours, I_{ν-1} = I_{ν+1} + (2ν/x) I_ν, a direction in which errors fade.
    """
    top = order + 14
    value = _debye(top, x)
    ratio = torch.exp(_debye(top + 1, x) - value)
    for i in range(14):
        ratio = 1 / (2 * (top - i) / x + ratio)
        value = value - ratio.log()
    return value


def _debye(order: float, x: Tensor) -> Tensor:
    """Log I_ν(x) - x for a large order. Abramowitz & Stegun 9.7.7 and 9.3.9."""
    z = x / order
    root = torch.sqrt(1 + z.square())
    t = 1 / root
    series = (
        1 + (3 * t - 5 * t**3) / (24 * order)
        + (81 * t**2 - 462 * t**4 + 385 * t**6) / (1152 * order**2)
        + (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / (414720 * order**3)
    )  # fmt: skip
    exponent = order * (1 / (root + z) + torch.log(z / (1 + root)))
    return exponent - 0.5 * torch.log(2 * math.pi * order * root) + torch.log(series)


def von_mises_fisher(natural: Tensor, y: Tensor) -> Tensor:
    """Log-density [*] of unit vectors y [*, e], e >= 2, with κμ = natural [*, e].

    Relative to the area of the sphere, so that no concentration is -log area.
    """
    size = y.shape[-1]
    kappa = torch.sqrt(natural.square().sum(-1) + 1e-8)
    order = size / 2 - 1
    constant = order * kappa.log() - 0.5 * size * math.log(2 * math.pi)
    return (natural * y).sum(-1) - kappa + constant - log_bessel(order, kappa)


class VonMisesFisherDecoder(Decoder):
    """Directions y, unit vectors [*, e], e >= 2 [nats, relative to the area of the sphere].

    Args:
        x_size: d.
        y_size: e.
        hidden: width of the network.
        max_concentration: above every κ, without which the density of a decodable direction has no
            bound; 100 is a deviation of about 0.1 radian.
    """

    def __init__(
        self, x_size: int, y_size: int, hidden: int = 128, max_concentration: float = 100.0
    ) -> None:
        super().__init__()
        if y_size < 2:
            raise ValueError(f"VonMisesFisherDecoder: expected y_size >= 2, got {y_size}")
        self.network, self.max_concentration = mlp(x_size, hidden, y_size), max_concentration

    def natural(self, x: Tensor) -> Tensor:
        """Mean direction times concentration, [*, e]."""
        raw = full(self.network(x))
        return raw / (
            1 + torch.sqrt(raw.square().sum(-1, keepdim=True) + 1e-8) / self.max_concentration
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y|x), [*]."""
        return von_mises_fisher(self.natural(x), y)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y_j | x_i), [N, M]."""
        natural = self.natural(x)
        at_zero = von_mises_fisher(natural, torch.zeros_like(natural))
        return natural @ y.mT + at_zero[..., None]


class FlowDecoder(Decoder):
    """A normalising flow: y becomes N(0, I) by invertible steps that depend on x [nats].

    Each step shifts and scales one half of y by a network of x and the other half (real NVP; Dinh
    et al. 2017), then bends every coordinate by z -> sinh(τ asinh z - ε), which makes tails and
    skewness (Jones & Pewsey 2009) and is all that one dimension needs.

    Args:
        x_size: d.
        y_size: e.
        steps: of the flow; the halves take turns.
        hidden: width of the networks.
    """

    def __init__(self, x_size: int, y_size: int, steps: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            mlp(x_size + y_size, hidden, 4 * y_size) for _ in range(steps)
        )
        for network in self.networks:  # starts as the identity
            last = network[-1]  # type: ignore[index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y|x), [*]."""
        half = torch.arange(y.shape[-1], device=y.device) % 2 == 0
        log_slope = torch.zeros_like(y)
        for i, network in enumerate(self.networks):
            given = half if i % 2 and len(half) > 1 else ~half  # in one dimension: nothing
            raw = full(network(torch.cat([x, y.masked_fill(~given, 0)], -1)))
            # All zeros are the identity, which is what the given half gets.
            shift, log_scale, skew, tail = (
                raw.unflatten(-1, (4, -1)).masked_fill(given, 0).unbind(-2)
            )
            # Bounded in each step, because exp and sinh are not; the steps add up to any range.
            log_scale, tail = 3 * torch.tanh(log_scale / 3), 0.5 * torch.tanh(tail)
            y = (y - shift) * torch.exp(-log_scale)
            bent = torch.exp(tail) * torch.asinh(y) - skew
            log_cosh = bent.abs() + torch.log1p(torch.exp(-2 * bent.abs())) - math.log(2)
            log_slope = log_slope - log_scale + tail + log_cosh - 0.5 * torch.log1p(y.square())
            y = torch.sinh(bent)
        return (log_slope - 0.5 * y.square() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def pairwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Log q(y_j | x_i), [N, M]."""
        shape = torch.broadcast_shapes(x[..., :, None, :1].shape, y[..., None, :, :1].shape)[:-1]
        x, y = x[..., :, None, :], y[..., None, :, :]
        return self(x.expand(*shape, -1), y.expand(*shape, -1))

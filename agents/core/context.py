"""What a task looks like from a few transitions: encoder, aggregators, and generated negatives.

A transition is split into what the behaviour chose, `chosen` = (s, a), [..., D+U], and what the
task answered, `answer` = (r, Δs), [..., 1+D]. A code may depend on the first only through the
second; a generator makes other answers to the same choice.

Shape letters as in `agents/base.py`; M tasks, B transitions, K negatives, T steps of a context.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.core.nets import RunningNorm, mlp


class TransitionEncoder(nn.Module):
    """Code of a single transition on the unit sphere, [..., Z] (Yuan & Lu 2022, section 4.1)."""

    def __init__(self, chosen: int, answer: int, hidden: list[int], code: int) -> None:
        super().__init__()
        self.network = mlp(chosen + answer, hidden, code)

    def forward(self, chosen: Tensor, answer: Tensor) -> Tensor:
        """Code of [..., D+U] and [..., 1+D], [..., Z]."""
        return functional.normalize(self.network(torch.cat([chosen, answer], -1)), dim=-1)


class MeanAggregator(nn.Module):
    """Mean of the codes, [..., T, Z] -> [..., Z]."""

    def __init__(self, code: int) -> None:
        super().__init__()

    def forward(self, codes: Tensor, mask: Tensor) -> Tensor:
        """Pool codes [..., T, Z] of the steps in mask bool [..., T]; no step at all gives 0."""
        weight = mask.to(codes.dtype)
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1)
        return (weight[..., None] * codes).sum(-2)


class AttentionAggregator(nn.Module):
    """Softmax attention with one linear score per code, as published; permutation-invariant."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.score = nn.Linear(code, 1)

    def forward(self, codes: Tensor, mask: Tensor) -> Tensor:
        """See `MeanAggregator`."""
        score = self.score(codes)[..., 0].masked_fill(~mask, -1e9)
        weight = score.softmax(-1) * mask
        return (weight[..., None] * codes).sum(-2)


class RecurrentAggregator(nn.Module):
    """Last state of a GRU over the codes; depends on their order."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.gru = nn.GRU(code, code, batch_first=True)

    def forward(self, codes: Tensor, mask: Tensor) -> Tensor:
        """See `MeanAggregator`; steps outside the mask must come last."""
        hidden, _ = self.gru(codes.flatten(0, -3))
        last = mask.flatten(0, -2).sum(-1)
        chosen = hidden[torch.arange(len(hidden), device=hidden.device), (last - 1).clamp_min(0)]
        return (chosen * (last > 0)[:, None]).unflatten(0, codes.shape[:-2])


AGGREGATORS: dict[str, type[nn.Module]] = {
    "attention": AttentionAggregator,
    "mean": MeanAggregator,
    "recurrent": RecurrentAggregator,
}


class Generator(nn.Module):
    """Negatives: other answers to the same choice."""

    def loss(
        self, chosen: Tensor, answer: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the generator's own parameters, 0-d, and metrics.

        Args:
            chosen: [B, D+U].
            answer: [B, 1+D].
            task: index among the training tasks, int64 [B].
            generator: of random numbers.
        """
        return chosen.new_zeros(()), {}

    def sample(
        self, chosen: Tensor, answer: Tensor, task: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        """Answers [B, count, 1+D] to each choice, without gradient; arguments as of `loss`."""
        raise NotImplementedError


class Decoder(nn.Module):
    """The answer to a choice under a code of the task.

    Args:
        chosen: D+U.
        answer: 1+D.
        code: Z.
        hidden: widths.
    """

    def __init__(self, chosen: int, answer: int, code: int, hidden: list[int]) -> None:
        super().__init__()
        # Smooth: it errs less than ELU, ReLU or tanh where a task's own data do not reach.
        self.network = mlp(chosen + code, hidden, answer, activation=nn.SiLU)

    def forward(self, chosen: Tensor, code: Tensor) -> Tensor:
        """Answers to [..., X, D+U] under codes [..., Z], one per X rows; [..., X, 1+D].

        Choices are broadcast to the codes' leading sizes.
        """
        shape = *code.shape[:-1], *chosen.shape[-2:-1]
        code = code[..., None, :].expand(*shape, -1)
        return self.network(torch.cat([chosen.expand(*shape, -1), code], -1))


def answer_error(guess: Tensor, answer: Tensor) -> Tensor:
    """Mean of the squared errors of reward and of change of state, [..., 1+D] each, 0-d.

    The two count alike: as one feature of many the reward would hardly be learnt in a large state,
    and with it not the task, where tasks differ in reward alone.
    """
    error = (guess - answer).square()
    return (error[..., 0].mean() + error[..., 1:].mean()) / 2


class TaskDecoder(Generator):
    """Ours: one model of the answer, conditioned on a code of the task; counterfactuals for all.

    Training task i has a learnt code of its own. What task i would have answered is what the owner
    of a transition did answer, plus the difference that the model sees between the two tasks: noise
    and the model's error stay as they were (Pearl's abduction), real cannot be told from made up,
    and tasks that answer alike are exact. The codes start at almost 0, so that those stay close.

    Args:
        chosen: D+U.
        answer: 1+D.
        tasks: M.
        code: Z.
        hidden: widths.
    """

    def __init__(self, chosen: int, answer: int, tasks: int, code: int, hidden: list[int]) -> None:
        super().__init__()
        self.codes = nn.Parameter(0.01 * torch.randn(tasks, code))
        self.decoder = Decoder(chosen, answer, code, hidden)

    @torch.no_grad()
    def answer(self, chosen: Tensor, answer: Tensor, owner: Tensor, task: Tensor) -> Tensor:
        """What tasks would have answered, no gradient, [B, X, 1+D].

        Args:
            chosen: [B, X, D+U].
            answer: what their owners did answer, [B, X, 1+D].
            owner: training tasks, int64 [B].
            task: likewise.
        """
        other, own = self.decoder(chosen, self.codes[torch.stack([task, owner])])
        return answer + other - own

    def loss(
        self, chosen: Tensor, answer: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Generator`."""
        return answer_error(self.decoder(chosen[:, None], self.codes[task])[:, 0], answer), {}

    @torch.no_grad()
    def sample(
        self, chosen: Tensor, answer: Tensor, task: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        """See `Generator`; each as another random task answers."""
        tasks, shape = len(self.codes), (len(chosen), count)
        shift = torch.randint(1, max(tasks, 2), shape, generator=generator, device=chosen.device)
        asked = torch.cat([task[:, None], (task[:, None] + shift) % tasks], 1)  # own, then others
        made = self.decoder(chosen[:, None, None], self.codes[asked])[:, :, 0]
        return answer[:, None] + made[:, 1:] - made[:, :1]


class CVAE(Generator):
    """The published generator: p(answer | s, a, z), z ~ N(0, I) (Yuan & Lu 2022, section 4.2).

    Loss: mean squared error of s', plus that of r, plus β KL. At the released β = 0.2 the
    posterior collapses, and every negative is the conditional mean; see `benchmarks/corro.py`.

    Args:
        chosen: D+U.
        answer: 1+D.
        beta: β.
        hidden: width.
        latent: size of z.
    """

    MAX_LOG_STD = 10.0
    """Raw velocities of 100 rad/s ask an untrained network for σ = e^30, whose gradient Adam cannot
    square: NaN on walker-param. It learns to be below; at most e^6 after 100 steps there."""

    def __init__(
        self, chosen: int, answer: int, beta: float, hidden: int = 64, latent: int = 5
    ) -> None:
        super().__init__()
        self.beta, self.latent = beta, latent
        self.encoder = mlp(chosen + answer, [hidden], 2 * latent)
        self.decoder = mlp(chosen + latent, [hidden], answer)

    def loss(
        self, chosen: Tensor, answer: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Generator`."""
        mean, log_std = self.encoder(torch.cat([chosen, answer], -1)).chunk(2, -1)
        log_std = log_std.clamp_max(self.MAX_LOG_STD)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        guess = self.decoder(torch.cat([chosen, mean + log_std.exp() * noise], -1))
        error = (guess - answer).square()
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1).mean()
        loss = error[..., 0].mean() + error[..., 1:].mean() + self.beta * kl
        return loss, {"generator/kl": kl.detach()}

    @torch.no_grad()
    def sample(
        self, chosen: Tensor, answer: Tensor, task: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        """See `Generator`."""
        shape = (len(chosen), count, self.latent)
        latent = torch.randn(shape, generator=generator, device=chosen.device)
        chosen = chosen[:, None].expand(-1, count, -1)
        return self.decoder(torch.cat([chosen, latent], -1))


class RewardNoise(Generator):
    """The same successor with reward r + N(0, σ²); for tasks that differ in reward alone.

    Args:
        std: σ in the answers' unit.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def sample(
        self, chosen: Tensor, answer: Tensor, task: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        """See `Generator`."""
        noise = torch.randn((len(answer), count), generator=generator, device=answer.device)
        negatives = answer[:, None].repeat(1, count, 1)
        negatives[..., 0] += self.std * noise
        return negatives


class Relabelling(Generator):
    """One model of the answer per training task; a negative comes from a random task's model.

    The M models are one network of batched matrix products.

    Args:
        chosen: D+U.
        answer: 1+D.
        tasks: M.
        hidden: width of two hidden layers.
    """

    def __init__(self, chosen: int, answer: int, tasks: int, hidden: int = 64) -> None:
        super().__init__()
        sizes = [chosen, hidden, hidden, answer]
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(
            torch.empty(tasks, i, o).uniform_(-1 / math.sqrt(i), 1 / math.sqrt(i)) for i, o in pairs
        )
        self.biases = nn.ParameterList(torch.zeros(tasks, 1, o) for _, o in pairs)

    def forward(self, chosen: Tensor) -> Tensor:
        """Every task's answer to every choice, [M, B, 1+D]."""
        h = chosen.expand(len(self.weights[0]), -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            h = functional.elu(h) if i < len(self.weights) - 1 else h
        return h

    def loss(
        self, chosen: Tensor, answer: Tensor, task: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Generator`."""
        own = self(chosen)[task, torch.arange(len(task), device=task.device)]
        return (own - answer).square().mean(), {}

    @torch.no_grad()
    def sample(
        self, chosen: Tensor, answer: Tensor, task: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        """See `Generator`."""
        every = self(chosen)
        shape = (len(chosen), count)
        task = torch.randint(len(every), shape, generator=generator, device=chosen.device)
        return every[task, torch.arange(len(chosen), device=chosen.device)[:, None]]


def focal_distance(codes: Tensor, beta: float = 1.0, epsilon: float = 0.1) -> Tensor:
    """Distance metric loss of FOCAL (Li et al. 2021, eq. 13, with n = 2), 0-d.

    Codes of one task attract by their squared distance, codes of different tasks repel by
    β / (squared distance + ε).

    Args:
        codes: [B, C, Z], C contexts of each of B distinct tasks.
        beta: β.
        epsilon: ε.
    """
    tasks, contexts = codes.shape[:2]
    flat = codes.flatten(0, 1)
    square = (flat[:, None] - flat).square().sum(-1)
    label = torch.arange(tasks, device=codes.device).repeat_interleave(contexts)
    same = (label[:, None] == label).to(square.dtype)
    other = 1 - same
    same = same - torch.eye(len(flat), device=codes.device)
    attract = (same * square).sum() / same.sum().clamp_min(1)
    repel = (other * beta / (square + epsilon)).sum() / other.sum().clamp_min(1)
    return attract + repel


class Coordinates(nn.Module):
    """Transitions in the networks' units: standardised (s, a) and (r, Δs), or raw (r, s').

    Args:
        obs: D.
        actions: U.
        normalize: standardise, and let the answer be the change of state.
    """

    def __init__(self, obs: int, actions: int, normalize: bool) -> None:
        super().__init__()
        self.obs, self.normalize = obs, normalize
        self.chosen, self.answer = RunningNorm(obs + actions, 1e6), RunningNorm(1 + obs, 1e6)

    @property
    def fitted(self) -> bool:
        """Whether `fit` was called (or there is nothing to fit)."""
        return not self.normalize or bool(self.chosen.count > 0)

    def split(
        self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What was chosen [..., D+U] and what the task answered [..., 1+D], in their own units."""
        change = next_obs - obs if self.normalize else next_obs
        return torch.cat([obs, action], -1), torch.cat([reward[..., None], change], -1)

    def fit(self, mask: Tensor, *transitions: Tensor) -> None:
        """Take mean and deviation from the steps in the mask."""
        chosen, answer = self.split(*transitions)
        self.chosen.update(chosen[mask])
        self.answer.update(answer[mask])

    def forward(self, *transitions: Tensor) -> tuple[Tensor, Tensor]:
        """`split`, standardised."""
        chosen, answer = self.split(*transitions)
        return self.chosen(chosen), self.answer(answer)

    def observe(self, obs: Tensor) -> Tensor:
        """Standardised observations [..., D]."""
        return ((obs - self.chosen.mean[: self.obs]) / self._std(self.chosen)[: self.obs]).float()

    def reward(self, reward: Tensor) -> Tensor:
        """Rewards in units of their deviation, so that the critics' targets are of order 1."""
        return (reward / self._std(self.answer)[0]).float()

    def consequences(self, chosen: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Reward [...] as of `reward` and next observation [..., D] as of `observe`."""
        reward, change = answer[..., 0], answer[..., 1:]
        obs = chosen[..., : self.obs] if self.normalize else 0  # else the change is the successor
        scale, std = self._std(self.answer), self._std(self.chosen)[: self.obs]
        offset = self.answer.mean / torch.cat([scale[:1], std])
        scale, offset = (scale[1:] / std).float(), offset.float()
        return reward + offset[0], obs + change * scale + offset[1:]

    @staticmethod
    def _std(norm: RunningNorm) -> Tensor:
        return (norm.variance + 1e-8).sqrt()


def make_generator(
    kind: str,
    sizes: tuple[int, int],
    tasks: int,
    code: int,
    hidden: list[int],
    option: float | None,
) -> Generator:
    """The generator of negatives by name; "transitions" needs none.

    Args:
        kind: "decoder", "cvae", "reward", "relabel" or "transitions".
        sizes: D+U and 1+D.
        tasks: M.
        code: Z.
        hidden: widths of the decoder.
        option: the CVAE's β (0.2 if None) or the reward noise's σ (0.5 if None).
    """
    if kind == "decoder":
        return TaskDecoder(*sizes, tasks, code, hidden)
    if kind == "cvae":
        return CVAE(*sizes, 0.2 if option is None else option)
    if kind == "reward":
        return RewardNoise(0.5 if option is None else option)
    return Relabelling(*sizes, tasks) if kind == "relabel" else Generator()

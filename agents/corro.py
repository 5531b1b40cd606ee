"""CORRO: robust task representations for offline meta-RL (Yuan & Lu, ICML 2022, arXiv 2206.10442).

A dataset holds episodes of many tasks. First an encoder learns to tell, from transitions, which
task answered: it maximises I(code; task) by contrasting a transition with counterfactual answers
to the same state and action, so that the behaviour that chose them leaves no mark. Then a policy
is trained, offline, on observation and code. At test time a few transitions of an unseen task give
its code.

Ours differs from the paper where it fails (`configs/baselines/corro-published.yaml` is the paper):
negatives are what a decoder of the answer, conditioned on the training task, says other tasks
answer, noise and all; to reconstruct the answer trains the codes as well; and other tasks'
behaviour, relabelled by the decoder, trains encoder and policy. FOCAL, UNICORN, CSRO,
supervised, oracle and multi-task learning are configurations of this file.

As nothing is collected, a time step is a gradient step here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import mi
from agents.base import Agent, AgentConfig, State
from agents.core.config import ConfigError, require
from agents.core.context import (
    AGGREGATORS,
    Coordinates,
    Decoder,
    TransitionEncoder,
    answer_error,
    focal_distance,
    make_generator,
)
from agents.core.heads import HEADS, Batch
from agents.core.nets import flat_sizes, mlp
from agents.core.offline import evaluate_agent
from agents.core.tasks import TaskReplay, draw_tasks, pack, training_tasks
from envs.base import BatchedEnv
from envs.data import TaskData
from envs.tasks import TaskFamily

PRIOR_RATE = 0.01
"""Of the running mean of codes whose encoder the critics go on training."""


@dataclass
class CORROConfig(AgentConfig):
    """Settings of CORRO."""

    env: str = "point-robot"
    num_envs: int = 1
    total_timesteps: int = 20_000
    """Gradient steps, of encoder and policy together."""
    dataset: str = ""
    """Directory or Minari id of the tasks' data, see `python train.py data`. A run keeps it as it
    was given: who moves the data says so in the run's config.yaml before resuming."""
    tier: str = "mixed"
    """Which of the dataset's tiers to learn from."""
    encoder_share: float = 0.5
    """Share of the gradient steps that the encoder takes; the policy takes those that follow."""
    num_tasks: int | None = None
    """Training tasks M; found in the dataset."""
    code: Literal["context", "oracle", "none"] = "context"
    """What the policy is told of the task: a code of its context, the true parameters, nothing."""
    code_size: int = 16
    """Z."""
    encoder_hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of encoder and decoder."""
    aggregator: Literal["attention", "mean", "recurrent"] = "attention"
    """How the codes of transitions become one."""
    normalize: bool = True
    """Standardise states, actions, rewards and changes of state; False takes raw (r, s')."""
    contrastive: float = 0.01
    """Weight of InfoNCE against generated negatives, a lower bound of I(code; task) (eq. 4)."""
    metric: float = 0.0
    """Weight of FOCAL's distance metric loss."""
    reconstruction: float = 1.0
    """Weight of the decoder's error in (r, Δs)."""
    classification: float = 0.0
    """Weight of the cross-entropy of the task's label."""
    leak: float = 0.0
    """Weight of CLUB's upper bound of I(code; s, a)."""
    negatives: Literal["decoder", "cvae", "reward", "relabel", "transitions"] = "decoder"
    """Of InfoNCE: other tasks' answers by the shared decoder (ours), the published CVAE, noise on
    the reward, one model per task, or other tasks' real transitions."""
    num_negatives: int = 16
    """Negatives per query; the decoder gives one per other task of the batch."""
    generator_share: float = 0.8
    """Share of the encoder's steps, the first ones, in which the generator alone learns."""
    generator_option: float | None = None
    """The CVAE's β (0.2 unless given) or the reward noise's σ (0.5)."""
    counterfactual: bool = True
    """Learn from other tasks' behaviour as well, as the decoder says this task answers it: half
    of the contexts, and all but `own_share` of the policy's transitions."""
    own_share: float = 0.0625
    """Share of the policy's transitions that are the task's own, for `counterfactual`."""
    critic_gradient: Literal["none", "aggregator", "encoder"] = "none"
    """What the policy's critics train besides themselves (published: the aggregator)."""
    temperature: float = 0.1
    """τ of InfoNCE."""
    task_batch: int = 16
    """Tasks per gradient step."""
    queries: int = 4
    """Query and key transitions per task in an encoder step."""
    rows: int = 16
    """Transitions per task in a step of policy or generator (published: 256)."""
    resample_tasks: bool = True
    """Draw tasks anew for every gradient step; False keeps them for a block."""
    block: int = 50
    """Gradient steps between two looks at the clock, metrics and signals."""
    head: Literal["sac", "td3bc", "iql", "brac"] = "sac"
    """Offline policy learning."""
    head_weight: float = 1.0
    """BRAC and TD3+BC: of behaviour; IQL: inverse temperature."""
    entropy: float | None = 0.01
    """Weight α of SAC's entropy (published: 0.2); None adapts it. Chosen, as the other defaults, by
    the returns on training tasks of point-robot."""
    layer_norm: bool = True
    """Normalise the critics' hidden layers."""
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of policy and critics."""
    gamma: float | None = None
    """Discount γ; None takes 1 - 1/horizon."""
    lr: float = 1e-3
    """Adam's step size for the policy and critics."""
    encoder_lr: float = 3e-3
    """Adam's step size for encoder, decoder and generator."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        counts = ("code_size", "num_negatives", "queries", "rows", "block")
        for name in counts:
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.task_batch >= 2, "task_batch", self.task_batch, "at least 2")
        for name in ("contrastive", "metric", "reconstruction", "classification", "leak"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("temperature", "lr", "encoder_lr", "head_weight", "generator_option"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a positive number")
        require(self.entropy is None or self.entropy >= 0, "entropy", self.entropy, "at least 0")
        if self.gamma is not None:
            require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        require(0 <= self.encoder_share <= 1, "encoder_share", self.encoder_share, "in [0, 1]")
        require(0 <= self.own_share <= 1, "own_share", self.own_share, "in [0, 1]")
        for name in ("hidden", "encoder_hidden"):
            widths = getattr(self, name)
            require(bool(widths) and min(widths) > 0, name, widths, "positive widths")
        require(0 <= self.generator_share < 1, "generator_share", self.generator_share, "in [0, 1)")
        alone = self.critic_gradient == "encoder" and self.counterfactual
        require(not alone, "critic_gradient", "encoder", "counterfactual=false: no decoder learns")
        allowed = not self.counterfactual or self.negatives == "decoder"
        require(allowed, "negatives", self.negatives, "decoder, for counterfactual")
        learns = self.generator_share > 0 or not self.counterfactual
        require(learns, "generator_share", 0.0, "above 0, for counterfactual")


class CORRO(Agent):
    """Task codes from contexts and an offline policy on them; see the module's docstring."""

    name = "corro"
    Config = CORROConfig

    def build(self) -> None:
        """Encoder, aggregator, generator, policy and critics, optimisers."""
        config = self.config
        obs, actions = flat_sizes(self.env, "CORRO")
        sizes, code = (obs + actions, obs + 1), config.code_size
        if config.code != "context":
            code = self._task_parameters() if config.code == "oracle" else 1
        self.coordinates = Coordinates(obs, actions, config.normalize).to(self.device)
        net: dict[str, nn.Module] = {
            "encoder": TransitionEncoder(*sizes, config.encoder_hidden, code),
            "aggregator": AGGREGATORS[config.aggregator](code),
        }
        if config.reconstruction:
            net["decoder"] = Decoder(*sizes, code, config.encoder_hidden)
        if config.classification:
            net["classifier"] = mlp(code, config.encoder_hidden, self._num_tasks())
        self.net: Any = nn.ModuleDict(net)
        self.net.register_buffer("prior", torch.zeros(code))
        self.net.to(self.device)
        gamma, horizon = config.gamma, self.env.max_episode_steps
        if gamma is None:
            known = horizon < sys.maxsize
            require(known, "gamma", gamma, "a number, as the environment has no time limit")
            gamma = 1 - 1 / horizon
        self.head = HEADS[config.head](
            obs + code, actions, config.hidden, gamma=gamma, weight=config.head_weight,
            temperature=config.entropy, layer_norm=config.layer_norm,
        ).to(self.device)  # fmt: skip
        learners = {
            "encoder": (self.net, config.encoder_lr),
            "critic": (self.head.critic_parameters(), config.lr),
            "actor": (self.head.actor_parameters(), config.lr),
        }
        self.parts = {"net": self.net, "head": self.head, "coordinates": self.coordinates}
        kind, tasks = self._generator_kind(), 0
        if config.classification or kind in ("decoder", "relabel"):
            tasks = self._num_tasks()
        hidden, option = config.encoder_hidden, config.generator_option
        generator = make_generator(kind, sizes, tasks, code, hidden, option)
        self.generate: Any = generator.to(self.device)
        learners["generator"] = (self.generate, config.encoder_lr)
        club = mi.neural.CLUB(mi.critics.GaussianDecoder(sizes[0], code, 64))
        self.leak = club.to(self.device)
        learners["leak"] = (self.leak, config.encoder_lr)
        self.parts |= {"generate": self.generate, "leak": self.leak}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, (source, lr) in learners.items():
            parameters = list(source.parameters() if isinstance(source, nn.Module) else source)
            if parameters:
                self.optimizers[name] = torch.optim.Adam(parameters, lr, fused=True)
                self.parts[f"{name}_optimizer"] = self.optimizers[name]
        space: Any = self.env.single_action_space
        low, high = (torch.as_tensor(b, device=self.device) for b in (space.low, space.high))
        self.action_scale, self.action_mean = (high - low) / 2, (high + low) / 2

    def _generator_kind(self) -> str:
        config = self.config
        needed = config.contrastive or config.counterfactual
        return config.negatives if needed and config.code == "context" else "transitions"

    def _task_parameters(self) -> int:
        if not isinstance(self.env, TaskFamily):
            raise ConfigError(f"code=oracle: expected a family of tasks, got env={self.config.env}")
        return self.env.tasks.shape[1]

    def _num_tasks(self) -> int:
        """Training tasks M; a checkpoint remembers them, and needs no data to act."""
        if self.config.num_tasks is None:
            self.config.num_tasks = self.data.num_tasks
        return self.config.num_tasks

    # ---- data

    @cached_property
    def data(self) -> TaskData:
        """The training tasks of the dataset; no test task is ever seen in training."""
        config = self.config
        return training_tasks(config.dataset, config.tier, self.env, self.device)

    @cached_property
    def replay(self) -> TaskReplay:
        """The data in the networks' units."""
        return pack(self.data, self.coordinates, self.action_scale, self.action_mean)

    @cached_property
    def bank(self) -> dict[str, Tensor]:
        """What the trained encoder gives, computed once: codes [M, C, Z] of each task's contexts.

        Half of them are counterfactual where that is wanted. Where the critics go on training the
        aggregator it is the codes of transitions, `steps` [M, C, T, Z] and `mask`, instead.
        """
        replay, config = self.replay, self.config
        generator = torch.Generator(self.device).manual_seed(config.seed + 3)
        task = torch.arange(replay.tasks, device=self.device)
        episode = replay.draw_episodes(task, min(replay.episodes, 256), generator)  # [M, C]
        context, mask = replay.whole(episode)
        with torch.no_grad():
            steps = self.net["encoder"](context["chosen"], context["answer"])
            code = self.net["aggregator"](steps, mask)
            if not bool(self.net.prior.any()):  # else a checkpoint had it
                self.net.prior.copy_(code.mean((0, 1)))
            if config.critic_gradient == "aggregator":
                return {"steps": steps, "mask": mask}
            if self.counterfactual:
                order = torch.randperm(episode.numel(), generator=generator, device=self.device)
                context, mask = replay.whole(episode.flatten()[order])
                owner, other = order // episode.shape[1], task.repeat_interleave(episode.shape[1])
                chosen = context["chosen"]
                answer = self.generate.answer(chosen, context["answer"], owner, other)
                made = self.encode(chosen, answer, mask).view_as(code)
                code = torch.cat([code, made], 1)
        return {"code": code}

    # ---- acting

    def encode(self, chosen: Tensor, answer: Tensor, mask: Tensor) -> Tensor:
        """Code of contexts [..., T, D+U] and [..., T, 1+D] with their steps' mask, [..., Z]."""
        return self.net["aggregator"](self.net["encoder"](chosen, answer), mask)

    @torch.no_grad()
    def context_state(self, context: tuple[Tensor, ...], mask: Tensor, task: Tensor) -> State:
        """What to play with after contexts in the environment's units, [N, Z].

        Args:
            context: observation [N, T, D], action [N, T, U], reward [N, T], next observation.
            mask: steps that exist, bool [N, T]; none at all gives the code of no context.
            task: parameters of the task [N, P], which the oracle reads.
        """
        if self.config.code == "oracle":
            return {"code": task}
        code = self.initial_state(len(mask))["code"]
        if self.config.code == "context":
            chosen, answer = self.coordinates(*context)
            seen = self.encode(chosen, answer, mask)
            code = torch.where(mask.any(-1, keepdim=True), seen, code)
        return {"code": code}

    def initial_state(self, num_envs: int) -> State:
        """The code of no context: the training contexts' mean, [num_envs, Z]; see `PRIOR_RATE`."""
        return {"code": self.net.prior.expand(num_envs, -1).clone()}

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Actions [N, U] of π(·|s, z)."""
        x, policy = torch.cat([self.coordinates.observe(obs), state["code"]], -1), self.head.policy
        action = policy.mode(x) if deterministic else policy.sample(x, self.generator)[0]
        return action * self.action_scale + self.action_mean, state

    def evaluate(
        self, env: BatchedEnv | None = None, episodes: int | None = None, deterministic: bool = True
    ) -> dict[str, float]:
        """See `Agent`; without an `env` on the dataset's test tasks, see `evaluate_agent`."""
        if env is not None:
            return super().evaluate(env, episodes, deterministic)
        return evaluate_agent(self, episodes or self.config.eval_episodes)

    def headline(self, row: Mapping[str, float]) -> dict[str, float]:
        """See `Agent`."""
        names = ("encoder/reconstruction", "encoder/contrastive", "policy/critic_loss")
        names += ("eval/return_mean", "eval/ood/return_mean")
        return {name.partition("/")[2]: row[name] for name in names if name in row}

    # ---- learning

    @property
    def counterfactual(self) -> bool:
        """Whether contexts and transitions are relabelled."""
        return self.config.counterfactual and self.config.code == "context"

    def _phase(self) -> tuple[str, int]:
        """Who learns now, and the gradient step at which that ends."""
        config, done, total = self.config, self.num_timesteps, self.config.total_timesteps
        codes = config.code == "context" and config.critic_gradient != "encoder"
        encoder = round(config.encoder_share * total) if codes else 0
        first = round(config.generator_share * encoder) if "generator" in self.optimizers else 0
        if done < encoder:
            return ("generator", first) if done < first else ("encoder", encoder)
        return "policy", max(total, done + config.block)  # where `learn` is asked for more

    @torch.no_grad()
    def collect(self) -> None:
        """Draw the rows of the next block of gradient steps from the dataset."""
        config, replay, generator = self.config, self.replay, self.generator
        self.learner, end = self._phase()
        count = min(config.block, end - self.num_timesteps)
        draws = count if config.resample_tasks else 1
        task = draw_tasks((draws, config.task_batch), replay.tasks, generator).expand(count, -1)
        rows = 2 * config.queries if self.learner == "encoder" else config.rows
        step = replay.draw_steps(task, rows, generator)
        self._rows = task, step, replay.draw_episodes(task, 2, generator)
        self.num_timesteps += count

    def update(self) -> dict[str, Tensor]:
        """A block of gradient steps; means of their metrics."""
        learn = self._learn_policy if self.learner == "policy" else self._learn_codes
        metrics = [
            learn(task, self.replay.steps(step), episode)
            for task, step, episode in zip(*self._rows, strict=True)
        ]
        return {name: torch.stack([m[name] for m in metrics]).mean() for name in metrics[0]}

    def _learn_codes(
        self, task: Tensor, steps: dict[str, Tensor], episode: Tensor
    ) -> dict[str, Tensor]:
        """One step of the generator, or of the encoder; the weighted sum is the objective."""
        config, generate = self.config, self.generate
        chosen, answer = steps["chosen"], steps["answer"]  # [B, 2Q, .]
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        if self.learner == "generator":  # from then on it stays as it is
            flat, label = chosen.flatten(0, 1), task.repeat_interleave(chosen.shape[1])
            loss = generate.loss(flat, answer.flatten(0, 1), label, self.generator)
            losses["generator"], metrics = loss
        if self.learner == "encoder":
            wanted = config.reconstruction or config.metric or config.classification
            code = self._context_codes(task, episode) if wanted else chosen[:0]
            if config.reconstruction:
                losses["reconstruction"] = self._reconstruction_loss(task, chosen, answer, code)
            if config.contrastive:
                losses["contrastive"] = self._contrastive_loss(task, chosen, answer)
            if config.metric:
                losses["metric"] = focal_distance(code)
            if config.classification:
                losses["classification"] = self._classification_loss(task, code)
            if config.leak:
                losses["leak"] = self._leak(chosen, answer)
        total = sum(getattr(config, name, 1.0) * loss for name, loss in losses.items())
        self._step([self.learner], total)
        return {f"encoder/{name}": loss.detach() for name, loss in losses.items()} | metrics

    def _context_codes(self, task: Tensor, episode: Tensor) -> Tensor:
        """Codes of two contexts of each task, the second of a neighbour's behaviour, [B, 2, Z]."""
        context, mask = self.replay.whole(episode)  # [B, 2, T, .]
        chosen, answer = context["chosen"], context["answer"]
        if self.counterfactual:
            other, made = self._neighbours(task, chosen[:, 1], answer[:, 1])
            chosen = torch.stack([chosen[:, 0], other], 1)
            answer = torch.stack([answer[:, 0], made], 1)
            mask = torch.stack([mask[:, 0], mask[:, 1].roll(1, 0)], 1)
        return self.encode(chosen, answer, mask)

    def _neighbours(self, task: Tensor, chosen: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Each task's neighbour's choices [B, X, D+U], and how the task would have answered."""
        chosen, answer, owner = chosen.roll(1, 0), answer.roll(1, 0), task.roll(1)
        return chosen, self.generate.answer(chosen, answer, owner, task)

    def _reconstruction_loss(
        self, task: Tensor, chosen: Tensor, answer: Tensor, code: Tensor
    ) -> Tensor:
        """Squared error of the decoder under each context's code [B, 2, Z], 0-d.

        Own transitions give themselves away by their states; a neighbour's need the code.
        """
        if self.counterfactual:
            other, made = self._neighbours(task, chosen, answer)
            chosen, answer = torch.cat([chosen, other], 1), torch.cat([answer, made], 1)
        guess = self.net["decoder"](chosen[:, None].expand(-1, code.shape[1], -1, -1), code)
        return answer_error(guess, answer[:, None])

    def _contrastive_loss(self, task: Tensor, chosen: Tensor, answer: Tensor) -> Tensor:
        """-InfoNCE of query and key [B, Q, .] against other answers to the query (eq. 4), 0-d."""
        config, encoder, queries = self.config, self.net["encoder"], self.config.queries
        asked, own = (v[:, :queries].flatten(0, 1) for v in (chosen, answer))
        count = config.num_negatives
        if config.negatives == "transitions":
            asked, negatives = self._other_transitions(len(asked))
        else:
            label = task.repeat_interleave(queries)
            negatives = self.generate.sample(asked, own, label, count, self.generator)
            asked = asked[:, None].expand(-1, count, -1)
        q, k = (code.flatten(0, 1) for code in encoder(chosen, answer).split(queries, 1))
        contrast = mi.GeneratedNegatives(config.temperature, cosine=False)
        return contrast.loss(q, k, encoder(asked, negatives))

    def _other_transitions(self, rows: int) -> tuple[Tensor, Tensor]:
        """Choices and answers of real transitions of random tasks, [rows, K, .] each."""
        shape, tasks = (rows, self.config.num_negatives), self.replay.tasks
        task = torch.randint(tasks, shape, generator=self.generator, device=self.device)
        step = self.replay.steps(self.replay.draw_steps(task, 1, self.generator)[..., 0])
        return step["chosen"], step["answer"]

    def _classification_loss(self, task: Tensor, code: Tensor) -> Tensor:
        """Cross-entropy of the task's label, 0-d."""
        logits = self.net["classifier"](code).flatten(0, 1)
        return functional.cross_entropy(logits, task.repeat_interleave(code.shape[1]))

    def _leak(self, chosen: Tensor, answer: Tensor) -> Tensor:
        """CLUB's bound of I(code; s, a) [nats], 0-d; its decoder learns first."""
        chosen = chosen.flatten(0, 1)
        code = self.net["encoder"](chosen, answer.flatten(0, 1))
        self._step(["leak"], self.leak.loss(chosen, code.detach()))
        return self.leak.bound(chosen, code, minimize=True)

    def _learn_policy(
        self, task: Tensor, steps: dict[str, Tensor], episode: Tensor
    ) -> dict[str, Tensor]:
        """One step of critics and policy on [B, R] transitions, and of what the critics train."""
        rows, code = steps["action"].shape[1], self._policy_codes(task, episode)
        if self.counterfactual:
            steps = self._relabelled(task, steps)
        code = code.expand(-1, rows, -1)
        obs = steps["chosen"][..., : self.coordinates.obs]
        x, x_next = (torch.cat([o, code], -1).flatten(0, 1) for o in (obs, steps["next"]))
        names = ("action", "reward", "terminated")
        action, reward, terminated = (steps[name].flatten(0, 1) for name in names)
        batch = Batch(x, action, reward[:, 0], x_next.detach(), terminated[:, 0])
        loss, metrics = self.head.critic_loss(batch, self.generator)
        trained = ["critic"] if self.config.critic_gradient == "none" else ["critic", "encoder"]
        self._step(trained, loss)
        self.head.follow()
        self.head.critics.requires_grad_(False)  # the actor's step needs no gradient of theirs
        actor_loss, more = self.head.actor_loss(batch._replace(x=x.detach()), self.generator)
        self._step(["actor"], actor_loss)
        self.head.critics.requires_grad_(True)
        metrics |= {"critic_loss": loss.detach(), "actor_loss": actor_loss.detach()} | more
        return {f"policy/{name}": value for name, value in metrics.items()}

    def _relabelled(self, task: Tensor, steps: dict[str, Tensor]) -> dict[str, Tensor]:
        """All but `own_share` of the rows from a neighbour, as the decoder says this task answers.

        A task's own data hardly say what to do away from its own behaviour's paths, and critics
        that know no better send the policy there.
        """
        own = round(self.config.own_share * steps["action"].shape[1])
        other = {name: value[:, own:].roll(1, 0) for name, value in steps.items()}
        answer = self.generate.answer(other["chosen"], other["answer"], task.roll(1), task)
        reward, next_obs = self.coordinates.consequences(other["chosen"], answer)
        other |= {"reward": reward[..., None], "next": next_obs}
        return {name: torch.cat([value[:, :own], other[name]], 1) for name, value in steps.items()}

    def _policy_codes(self, task: Tensor, episode: Tensor) -> Tensor:
        """Codes for the rows of each task: one each [B, R, Z], or (published) one [B, 1, Z]."""
        config = self.config
        if config.code == "oracle":
            return self.data.tasks[task][:, None]
        if config.code == "none":
            return self.net.prior.expand(len(task), 1, -1)
        if config.critic_gradient == "encoder":
            context, mask = self.replay.whole(episode[:, :1])
            code = self.encode(context["chosen"], context["answer"], mask)
            self.net.prior.lerp_(code.detach().mean((0, 1)), PRIOR_RATE)
            return code
        bank = self.bank
        if config.critic_gradient == "aggregator":
            index = episode[:, :1] % bank["mask"].shape[1]
            steps, mask = (bank[name][task[:, None], index] for name in ("steps", "mask"))
            return self.net["aggregator"](steps, mask)
        shape = (len(task), config.rows)
        size = bank["code"].shape[1]
        index = torch.randint(size, shape, generator=self.generator, device=self.device)
        return bank["code"][task[:, None], index]

    def _step(self, names: list[str], loss: Any) -> None:
        for name in names:
            self.optimizers[name].zero_grad()
        loss.backward()
        for name in names:
            self.optimizers[name].step()

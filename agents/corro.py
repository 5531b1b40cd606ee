"""CORRO: robust task representations for offline meta-RL (Yuan & Lu, ICML 2022, arXiv 2206.10442).

A dataset holds episodes of many tasks. First an encoder learns to tell, from transitions, which
task answered: it maximises I(code; task) by contrasting a transition with counterfactual answers
to the same state and action, so that the behaviour that chose them leaves no mark. Then a policy
is trained, offline, on observation and code. At test time a few transitions of an unseen task give
its code.

Ours differs from the paper where it fails (`configs/baselines/corro-published.yaml` is the paper):
negatives are what a decoder conditioned on other tasks' codes answers, positives pass through the
same decoder, the decoder's reconstruction trains the codes as well, and contexts are relabelled
under other tasks' behaviour, in training the encoder and the policy. FOCAL, UNICORN, CSRO,
supervised, oracle and multi-task learning are configurations of this file.

As nothing is collected, a time step is a gradient step here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import mi
from agents.base import Agent, AgentConfig, State
from agents.core.config import ConfigError, require
from agents.core.context import (
    AGGREGATORS,
    GENERATORS,
    Generator,
    TransitionEncoder,
    focal_distance,
)
from agents.core.heads import HEADS, Batch
from agents.core.nets import RunningNorm, flat_sizes, mlp
from agents.core.tasks import TaskReplay, draw_tasks


@dataclass
class CORROConfig(AgentConfig):
    """Settings of CORRO."""

    env: str = "point-robot"
    num_envs: int = 1
    total_timesteps: int = 20_000
    """Gradient steps, of encoder and policy together."""
    dataset: str = ""
    """Directory or Minari id of the tasks' data."""
    encoder_share: float = 0.5
    """Share of the gradient steps that the encoder takes; the policy takes those that follow."""
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
    contrastive: float = 1.0
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
    generator_share: float = 0.2
    """Share of the encoder's steps, the first ones, in which the generator alone learns."""
    generator_option: float | None = None
    """The CVAE's β (0.2 unless given) or the reward noise's σ (0.5)."""
    counterfactual: bool = True
    """Train with contexts of other tasks' behaviour, relabelled by the decoder, as well."""
    critic_gradient: Literal["none", "aggregator", "encoder"] = "none"
    """What the policy's critics train besides themselves (published: the aggregator)."""
    temperature: float = 0.1
    """τ of InfoNCE."""
    task_batch: int = 16
    """Tasks per gradient step."""
    queries: int = 4
    """Query and key transitions per task in an encoder step."""
    rows: int = 64
    """Transitions per task in a policy step (published: 256)."""
    resample_tasks: bool = True
    """Draw tasks anew for every gradient step; False keeps them for a block."""
    block: int = 50
    """Gradient steps between two looks at the clock, metrics and signals."""
    head: Literal["sac", "td3bc", "iql", "brac"] = "sac"
    """Offline policy learning."""
    head_weight: float = 1.0
    """BRAC and TD3+BC: of behaviour; IQL: inverse temperature."""
    entropy: float | None = None
    """Weight α of SAC's entropy (published: 0.2); None adapts it."""
    layer_norm: bool = True
    """Normalise the critics' hidden layers."""
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of policy and critics."""
    gamma: float = 0.99
    """Discount γ."""
    lr: float = 3e-4
    """Adam's step size for the policy and critics."""
    encoder_lr: float = 1e-3
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
        for name in ("temperature", "lr", "encoder_lr"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        require(0 <= self.encoder_share <= 1, "encoder_share", self.encoder_share, "in [0, 1]")
        for name in ("hidden", "encoder_hidden"):
            widths = getattr(self, name)
            require(bool(widths) and min(widths) > 0, name, widths, "positive widths")
        decodes = self.reconstruction > 0
        require(decodes or not self.counterfactual, "counterfactual", True, "reconstruction > 0")
        decoder = self.contrastive > 0 and self.negatives == "decoder"
        require(decodes or not decoder, "negatives", "decoder", "reconstruction > 0")


class CORRO(Agent):
    """Task codes from contexts and an offline policy on them; see the module's docstring."""

    name = "corro"
    Config = CORROConfig

    def build(self) -> None:
        """Encoder, aggregator, decoder, generator, policy and critics, optimisers."""
        config = self.config
        obs, actions = flat_sizes(self.env, "CORRO")
        self.chosen, self.answer, code = obs + actions, obs + 1, config.code_size
        if config.code != "context":
            code = self.data.parameters.shape[-1] if config.code == "oracle" else 1
        self.code_size, hidden = code, config.encoder_hidden
        net: dict[str, nn.Module] = {
            "encoder": TransitionEncoder(self.chosen, self.answer, hidden, code),
            "aggregator": AGGREGATORS[config.aggregator](code),
        }
        if config.classification:
            net["classifier"] = mlp(code, hidden, self.data.num_tasks)
        head = HEADS[config.head](
            obs + code, actions, config.hidden, gamma=config.gamma, weight=config.head_weight,
            temperature=config.entropy, layer_norm=config.layer_norm,
        )  # fmt: skip
        self.net, self.head = nn.ModuleDict(net), head.to(self.device)
        self.net.register_buffer("prior", torch.zeros(code))
        self.net.to(self.device)
        norms = {"chosen": RunningNorm(self.chosen), "answer": RunningNorm(self.answer)}
        self.norms = nn.ModuleDict(norms).to(self.device)
        self.parts = {"net": self.net, "head": self.head, "norms": self.norms}
        learners = {
            "encoder": (self.net.parameters(), config.encoder_lr),
            "critic": (self.head.critic_parameters(), config.lr),
            "actor": (self.head.actor_parameters(), config.lr),
        }
        self.generate = self.leak = None
        self.counterfactual = config.counterfactual and config.code == "context"
        needed = config.reconstruction or config.counterfactual or config.contrastive
        if needed and config.negatives in GENERATORS:
            self.generate = self.parts["generate"] = self._generator().to(self.device)
            learners["generator"] = (self.generate.parameters(), config.encoder_lr)
        if config.leak:
            club = mi.neural.CLUB(mi.critics.GaussianDecoder(self.chosen, code, 64))
            self.leak = self.parts["leak"] = club.to(self.device)
            learners["leak"] = (club.parameters(), config.encoder_lr)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, (parameters, lr) in learners.items():
            if parameters := list(parameters):
                self.optimizers[name] = torch.optim.Adam(parameters, lr)
                self.parts[f"{name}_optimizer"] = self.optimizers[name]
        space: Any = self.env.single_action_space
        low, high = (torch.as_tensor(b, device=self.device) for b in (space.low, space.high))
        self.action_scale, self.action_mean = (high - low) / 2, (high + low) / 2

    def _generator(self) -> Generator:
        """One of the published kinds of negatives; it learns from training tasks alone."""
        config = self.config
        option, options = config.generator_option, {}
        if config.negatives == "decoder":
            options = {"code": self.code_size, "hidden": config.encoder_hidden}
        elif config.negatives != "relabel" and option is not None:
            options = {"beta" if config.negatives == "cvae" else "std": option}
        tasks = self.data.num_tasks
        return GENERATORS[config.negatives](self.chosen, self.answer, tasks, **options)

    @property
    def encoder_updates(self) -> int:
        """Gradient steps after which the encoder is done."""
        trained = self.config.code == "context" and self.config.critic_gradient != "encoder"
        return round(self.config.encoder_share * self.config.total_timesteps) if trained else 0

    # ---- data

    @cached_property
    def data(self) -> Any:
        """The training tasks of the dataset; no test task is ever seen in training."""
        if not self.config.dataset:
            raise ConfigError("dataset: expected a directory or Minari id of tasks' data, got none")
        return load(self.config.dataset, self.device).split("train")

    @cached_property
    def replay(self) -> TaskReplay:
        """The data in the networks' coordinates."""
        data = self.data
        if self.config.normalize and not self.norms["answer"].count:
            for name, value in zip(("chosen", "answer"), self.split(*data.fields), strict=True):
                self.norms[name].update(value[data.mask])
        scale = float(self.norms["answer"].variance[0].sqrt()) if self.config.normalize else 1.0
        chosen, answer = self.coordinates(*data.fields)
        _, action, reward, next_obs = data.fields
        fields = {
            "chosen": chosen,
            "answer": answer,
            "action": (action - self.action_mean) / self.action_scale,
            "reward": reward[..., None] / scale,
            "next": self._norm_obs(next_obs),
            "terminated": data.terminated[..., None].float(),
        }
        return TaskReplay(fields, data.mask)

    def split(
        self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What was chosen, (s, a) [..., D+U], and the task's answer, (r, Δs) [..., 1+D]."""
        change = next_obs - obs if self.config.normalize else next_obs
        return torch.cat([obs, action], -1), torch.cat([reward[..., None], change], -1)

    def coordinates(self, *fields: Tensor) -> tuple[Tensor, Tensor]:
        """`split` in the networks' units."""
        chosen, answer = self.split(*fields)
        return self.norms["chosen"](chosen), self.norms["answer"](answer)

    def _norm_obs(self, obs: Tensor) -> Tensor:
        norm = self.norms["chosen"]
        std = (norm.variance + 1e-8).sqrt()
        size = obs.shape[-1]
        scaled = (obs - norm.mean[:size]) / std[:size]
        return scaled.clamp(-norm.clip, norm.clip).to(torch.float32)

    # ---- codes

    def encode(self, chosen: Tensor, answer: Tensor, mask: Tensor) -> Tensor:
        """Code of each context [..., T, D+U], [..., T, 1+D] with steps in mask, [..., Z]."""
        return self.net["aggregator"](self.net["encoder"](chosen, answer), mask)

    @torch.no_grad()
    def context_state(self, fields: tuple[Tensor, ...], mask: Tensor, task: Tensor) -> State:
        """What to play with after contexts in the environment's units, [N, Z].

        Args:
            fields: observation [N, T, D], action [N, T, U], reward [N, T], next observation.
            mask: steps that exist, bool [N, T]; none at all gives the code of no context.
            task: parameters of the task [N, P], which the oracle reads.
        """
        if self.config.code == "oracle":
            return {"code": task}
        state = self.initial_state(len(mask))
        if self.config.code == "context":
            code = self.encode(*self.coordinates(*fields), mask)
            state["code"] = torch.where(mask.any(-1, keepdim=True), code, state["code"])
        return state

    @cached_property
    def bank(self) -> dict[str, Tensor]:
        """What the frozen encoder gives, computed once: codes of each task's contexts.

        `code` [M, 2E, Z] of whole contexts, half of them counterfactual where that is wanted, or
        [M, E, Z]; or `steps` [M, E, T, Z] where the critics go on training the aggregator.
        """
        replay, config = self.replay, self.config
        generator = torch.Generator(self.device).manual_seed(config.seed + 3)
        every = torch.arange(len(replay.mask), device=self.device)
        episode = replay.draw_episodes(every, min(replay.episodes, 256), generator)  # [M, E]
        context, mask = replay.whole(episode)
        with torch.no_grad():
            steps = self.net["encoder"](context["chosen"], context["answer"])
            code = self.net["aggregator"](steps, mask)
            self.net.prior.copy_(code.mean((0, 1)))
            if config.critic_gradient == "aggregator":
                return {"steps": steps, "mask": mask}
            if config.counterfactual:
                mixed = torch.randperm(episode.numel(), generator=generator, device=self.device)
                other, seen = replay.whole(episode.flatten()[mixed].view_as(episode))
                asked = other["chosen"]
                answer = self.generate.answer(asked.flatten(1, 2), every).view(*asked.shape[:3], -1)
                code = torch.cat([code, self.encode(asked, answer, seen)], 1)
        return {"code": code}

    # ---- acting

    def initial_state(self, num_envs: int) -> State:
        """The code of no context: the training contexts' mean, [num_envs, Z]."""
        return {"code": self.net.prior.expand(num_envs, -1).clone()}

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Actions [N, U] of π(·|s, z)."""
        x = torch.cat([self._norm_obs(obs), state["code"]], -1)
        policy = self.head.policy
        action = policy.mode(x) if deterministic else policy.sample(x, self.generator)[0]
        return action * self.action_scale + self.action_mean, state

    # ---- learning

    @torch.no_grad()
    def collect(self) -> None:
        """Draw the rows of the next block of gradient steps from the dataset."""
        config, replay, generator = self.config, self.replay, self.generator
        done, total = self.num_timesteps, config.total_timesteps
        self.encoding = done < self.encoder_updates
        warm = round(config.generator_share * self.encoder_updates) if self.generate is not None else 0
        self.warming = done < warm
        end = warm if self.warming else self.encoder_updates if self.encoding else total
        count = min(config.block, end - done)
        count = max(count, 1)  # when `learn` is asked for more than was configured
        draws = count if config.resample_tasks else 1
        task = draw_tasks((draws, config.task_batch), replay.tasks, generator)
        task = task.expand(count, -1)
        rows = 2 * config.queries if self.encoding else config.rows
        self._rows = {"task": task, "step": replay.draw_steps(task, rows, generator)}
        self._rows["episode"] = replay.draw_episodes(task, 2, generator)
        self.num_timesteps += count

    def update(self) -> dict[str, Tensor]:
        """A block of gradient steps; means of their metrics."""
        learn, rows = self._learn_codes if self.encoding else self._learn_policy, self._rows
        metrics = [
            learn(task, self.replay.steps(step), episode)
            for task, step, episode in zip(*rows.values(), strict=True)
        ]
        return {name: torch.stack([m[name] for m in metrics]).mean() for name in metrics[0]}

    def _learn_codes(
        self, task: Tensor, steps: dict[str, Tensor], episode: Tensor
    ) -> dict[str, Tensor]:
        """One step of encoder, aggregator and generator; the sum is the objective."""
        config, chosen, answer = self.config, steps["chosen"], steps["answer"]  # [B, 2Q, .]
        losses, weights, metrics = {}, {}, {}
        if self.generate is not None and (self.warming or self.counterfactual):
            label = task.repeat_interleave(chosen.shape[1])
            rows = chosen.flatten(0, 1), answer.flatten(0, 1)
            losses["generator"], metrics = self.generate.loss(*rows, label, self.generator)
        if not self.warming:
            context, mask = self.replay.whole(episode)  # [B, 2, T, .]
            if self.counterfactual:  # the second context is how a neighbour behaves
                context, mask = self._with_counterfactual(task, context, mask)
            code = self.encode(context["chosen"], context["answer"], mask)  # [B, 2, Z]
            losses |= self._code_losses(task, chosen, answer, code)
        total = sum(weights.get(name, getattr(config, name, 1.0)) * x for name, x in losses.items())
        self._step([n for n in ("encoder", "generator") if n in self.optimizers], total)
        return {f"encoder/{name}": loss.detach() for name, loss in losses.items()} | metrics

    def _with_counterfactual(self, task, context, mask):
        chosen, answer = context["chosen"], context["answer"]
        other = chosen[:, 1].roll(1, 0)
        imagined = self.generate.answer(other, task)
        chosen = torch.stack([chosen[:, 0], other], 1)
        answer = torch.stack([answer[:, 0], imagined], 1)
        mask = torch.stack([mask[:, 0], mask[:, 1].roll(1, 0)], 1)
        return {"chosen": chosen, "answer": answer}, mask

    def _code_losses(self, task, chosen, answer, code):
        config, losses = self.config, {}
        if config.reconstruction:
            losses["reconstruction"] = self._reconstruction_loss(task, chosen, answer, code)
        if config.contrastive:
            losses["contrastive"] = self._contrastive_loss(task, chosen, answer)
        if config.metric:
            losses["metric"] = focal_distance(code)
        if config.classification:
            logits = self.net["classifier"](code).flatten(0, 1)
            label = task.repeat_interleave(code.shape[1])
            losses["classification"] = functional.cross_entropy(logits, label)
        if self.leak is not None:
            losses["leak"] = self._leak(chosen.flatten(0, 1), answer.flatten(0, 1))
        return losses

    def _reconstruction_loss(self, task: Tensor, chosen: Tensor, answer: Tensor, code: Tensor) -> Tensor:
        """Squared error of the decoder under each of a task's contexts [B, C, Z], 0-d."""
        if self.counterfactual:
            other = chosen.roll(1, 0)
            answer = torch.cat([answer, self.generate.answer(other, task)], 1)
            chosen = torch.cat([chosen, other], 1)
        chosen = chosen[:, None].expand(-1, code.shape[1], -1, -1)
        return (self.generate(chosen, code) - answer[:, None]).square().mean()

    def _contrastive_loss(self, task: Tensor, chosen: Tensor, answer: Tensor) -> Tensor:
        """-InfoNCE of queries and keys [B, Q, .] against other answers to the query (eq. 4), 0-d."""
        config, encoder = self.config, self.net["encoder"]
        queries = chosen.shape[1] // 2
        (query, key), (own, other) = chosen.split(queries, 1), answer.split(queries, 1)
        flat, label = query.flatten(0, 1), task.repeat_interleave(queries)
        asked = flat[:, None].expand(-1, config.num_negatives, -1)
        if config.negatives == "transitions":
            asked, negatives = self._other_transitions(flat)
        else:
            negatives = self.generate.sample(flat, own.flatten(0, 1), label, config.num_negatives, self.generator)
        if config.negatives == "decoder":
            other = self.generate.answer(key, task)
        q, k = encoder(query, own).flatten(0, 1), encoder(key, other).flatten(0, 1)
        scale, n = 1 / config.temperature, encoder(asked, negatives)
        pos, neg = (q * k).sum(-1) * scale, (n @ q[..., None])[..., 0] * scale
        return -mi.functional.infonce(pos=pos, neg=neg)

    def _other_transitions(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Choices and answers of real transitions of random tasks, [B, K, .] each."""
        shape = (len(like), self.config.num_negatives)
        task = torch.randint(
            self.replay.tasks, shape, generator=self.generator, device=self.device
        )
        step = self.replay.steps(self.replay.draw_steps(task, 1, self.generator)[..., 0])
        return step["chosen"], step["answer"]

    def _leak(self, chosen: Tensor, answer: Tensor) -> Tensor:
        """CLUB's bound of I(code; s, a) [nats], 0-d; its decoder learns first."""
        assert self.leak is not None
        code = self.net["encoder"](chosen, answer)
        self._step("leak", self.leak.loss(chosen, code.detach()))
        return self.leak.bound(chosen, code, minimize=True)

    def _learn_policy(
        self, task: Tensor, steps: dict[str, Tensor], episode: Tensor
    ) -> dict[str, Tensor]:
        """One step of critics and policy on [B, R] transitions, and of what the critics train."""
        code = self._policy_codes(task, episode, steps["action"].shape[1])
        size = self.chosen - self.action_scale.shape[0]
        x = torch.cat([steps["chosen"][..., :size], code], -1).flatten(0, 1)
        x_next = torch.cat([steps["next"], code], -1).flatten(0, 1)
        fields = (steps[k].flatten(0, 1) for k in ("action", "reward", "terminated"))
        action, reward, terminated = fields
        batch = Batch(x, action, reward[:, 0], x_next.detach(), terminated[:, 0])
        loss, metrics = self.head.critic_loss(batch, self.generator)
        learners = ["critic"] if self.config.critic_gradient == "none" else ["critic", "encoder"]
        self._step(learners, loss)
        self.head.follow()
        self.head.critics.requires_grad_(False)  # the actor's step needs no gradient of theirs
        actor_loss, more = self.head.actor_loss(batch._replace(x=x.detach()), self.generator)
        self._step("actor", actor_loss)
        self.head.critics.requires_grad_(True)
        metrics |= {"critic_loss": loss.detach(), "actor_loss": actor_loss.detach()} | more
        return {f"policy/{name}": value for name, value in metrics.items()}

    def _policy_codes(self, task: Tensor, episode: Tensor, rows: int) -> Tensor:
        """Codes for R rows of each task, [B, R, Z]: one context per row, or (published) per task."""
        config = self.config
        if config.code == "oracle":
            code = self.data.parameters[task]
        elif config.code == "none":
            code = self.net.prior.expand(len(task), -1)
        elif config.critic_gradient == "none":
            bank = self.bank["code"]
            index = torch.randint(
                bank.shape[1], (len(task), rows), generator=self.generator, device=self.device
            )
            return bank[task[:, None], index]
        elif config.critic_gradient == "aggregator":
            bank = self.bank
            index = episode[:, 0] % bank["mask"].shape[1]
            code = self.net["aggregator"](bank["steps"][task, index], bank["mask"][task, index])
        else:
            context, mask = self.replay.whole(episode[:, 0])
            code = self.encode(context["chosen"], context["answer"], mask)
        return code[:, None].expand(-1, rows, -1)

    def _step(self, names: str | list[str], loss: Tensor) -> None:
        optimizers = [self.optimizers[n] for n in ([names] if isinstance(names, str) else names)]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


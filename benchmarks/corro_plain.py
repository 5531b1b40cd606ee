"""The published updates of CORRO in plain PyTorch, to compare speed within one run.

Written from the paper and the description of its released code, as one writes it without thought
of speed: numpy replay buffers in float64, a loop over tasks, one network per critic, an optimiser
each, one forward pass per argument. Sizes and losses are the published ones; it is timed, never
trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Plain:
    """Networks, buffers [K, S, .] of K tasks with S transitions in episodes of T steps.

    Args:
        obs: D.
        actions: U.
        hidden: widths of policy and critics.
        horizon: T.
        rows: transitions of each task in a policy step.
    """

    def __init__(self, obs: int, actions: int, hidden: list[int], horizon: int, rows: int) -> None:
        self.tasks, self.episodes, self.horizon, self.rows = 20, 50, horizon, rows
        self.rng, steps = np.random.default_rng(0), self.episodes * horizon
        code = 5
        shapes = {"s": obs, "a": actions, "r": 1, "n": obs, "d": 1}
        self.buffer = {k: self.rng.normal(size=(self.tasks, steps, d)) for k, d in shapes.items()}
        self.buffer["d"][:] = 0
        self.encoder = mlp(2 * obs + actions + 1, 64, 64, code)
        self.decoder = mlp(obs + actions + code, 64, obs + 1)  # of the CVAE
        self.score = nn.Linear(code, 1)
        self.policy = mlp(obs + code, *hidden, 2 * actions)
        self.q = [mlp(obs + code + actions, *hidden, 1) for _ in range(2)]
        self.target = [mlp(obs + code + actions, *hidden, 1) for _ in range(2)]
        trained: tuple[nn.Module, ...] = (self.encoder, self.score, self.policy, *self.q)
        self.adam = {net: torch.optim.Adam(net.parameters(), 3e-4) for net in trained}

    def draw(self, task: int, rows: np.ndarray) -> dict[str, Tensor]:
        return {k: torch.FloatTensor(v[task][rows]) for k, v in self.buffer.items()}

    def code(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.normalize(
            self.encoder(torch.cat([batch[k] for k in ("s", "a", "r", "n")], -1)), dim=-1
        )

    def contrastive(self) -> None:
        """64 queries, 16 CVAE negatives each."""
        tasks, steps = self.rng.integers(self.tasks, size=64), self.buffer["s"].shape[1]
        rows = self.rng.integers(steps, size=(2, 64))
        query, key = (
            {k: torch.FloatTensor(v[tasks, index]) for k, v in self.buffer.items()}
            for index in rows
        )
        with torch.no_grad():
            chosen = torch.cat([query["s"], query["a"]], -1)[:, None].expand(-1, 16, -1)
            answer = self.decoder(torch.cat([chosen, torch.randn(64, 16, 5)], -1))
        s, a = (query[k][:, None].expand(-1, 16, -1) for k in "sa")
        made = {"s": s, "a": a, "r": answer[..., :1], "n": answer[..., 1:]}
        q, k, n = self.code(query), self.code(key), self.code(made)
        logits = torch.cat([(q * k).sum(-1, keepdim=True), (q[:, None] * n).sum(-1)], 1) / 0.1
        loss = functional.cross_entropy(logits, torch.zeros(64, dtype=torch.long))
        self.descend(loss, self.encoder)
        loss.item()

    def descend(self, loss: Tensor, *nets: nn.Module, keep: bool = False) -> None:
        for net in nets:
            self.adam[net].zero_grad()
        loss.backward(retain_graph=keep)
        for net in nets:
            self.adam[net].step()

    def act(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy(x).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        raw = normal.rsample()
        action = raw.tanh()
        log_prob = normal.log_prob(raw) - torch.log(1 - action.pow(2) + 1e-6)
        return action, log_prob.sum(-1, keepdim=True)

    def update(self) -> None:
        """SAC on 16 tasks, one trajectory each as context; the critics train the aggregator."""
        steps, tasks = self.buffer["s"].shape[1], self.rng.integers(self.tasks, size=16)
        batches = [self.draw(t, self.rng.integers(steps, size=self.rows)) for t in tasks]
        starts = self.rng.integers(self.episodes, size=16) * self.horizon
        pairs = zip(tasks, starts, strict=True)
        contexts = [self.draw(t, np.arange(i, i + self.horizon)) for t, i in pairs]
        batch = {k: torch.cat([b[k] for b in batches]) for k in self.buffer}
        context = {k: torch.stack([c[k] for c in contexts]) for k in self.buffer}
        with torch.no_grad():
            codes = self.code(context)
        z = (self.score(codes).softmax(1) * codes).sum(1).repeat_interleave(self.rows, 0)
        x, x_next = torch.cat([batch["s"], z], -1), torch.cat([batch["n"], z.detach()], -1)
        with torch.no_grad():
            action, log_prob = self.act(x_next)
            later = [q(torch.cat([x_next, action], -1)) for q in self.target]
            goal = torch.min(*later) - 0.2 * log_prob
            goal = batch["r"] + 0.99 * (1 - batch["d"]) * goal
        losses = [functional.mse_loss(q(torch.cat([x, batch["a"]], -1)), goal) for q in self.q]
        self.adam[self.score].zero_grad()
        self.descend(losses[0], self.q[0], keep=True)
        self.descend(losses[1], self.q[1])
        self.adam[self.score].step()
        x = x.detach()
        action, log_prob = self.act(x)
        values = [q(torch.cat([x, action], -1)) for q in self.q]
        actor_loss = (0.2 * log_prob - torch.min(*values)).mean()
        self.descend(actor_loss, self.policy)
        for net, target in zip(self.q, self.target, strict=True):
            for p, old in zip(net.parameters(), target.parameters(), strict=True):
                old.data.copy_(0.995 * old.data + 0.005 * p.data)
        [loss.item() for loss in (*losses, actor_loss)]


def block(step: Callable[[], None], count: int = 20) -> Callable[[], int]:
    """`count` of these steps, and their number."""

    def run() -> int:
        for _ in range(count):
            step()
        return count

    return run

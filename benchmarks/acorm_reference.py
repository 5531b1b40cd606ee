"""A learning step of ACORM built as the published code builds it, to measure ours against.

Ours, written from what is known of its structure: a Python loop of GRU cells over time for every
network, one K-means of scikit-learn for each step of each episode, one term of the loss at a time.
The sizes of all networks are those of `agents.ACORM`, whose weights it takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional


def cell(gru: nn.GRU) -> nn.GRUCell:
    """The GRU cell with the weights of a GRU."""
    made = nn.GRUCell(gru.input_size, gru.hidden_size)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    made.load_state_dict({n: getattr(gru, f"{n}_l0").detach().clone() for n in names})
    return made


class Reference:
    """Steps on one batch; `agent` is an `ACORM` with the default architecture."""

    def __init__(self, agent: Any, batch: dict[str, Tensor]) -> None:
        import copy

        # [B, T, ...], its layout
        self.batch = {name: value.transpose(0, 1).contiguous() for name, value in batch.items()}
        self.roles, self.networks = copy.deepcopy(agent.roles), copy.deepcopy(agent.networks)
        self.targets = copy.deepcopy(agent.targets)
        self.cells = nn.ModuleDict({
            "embedding": cell(self.roles.body.gru),
            "utility": cell(self.networks["utility"].body.gru),
            "history": cell(self.networks["attention"].history),
        })  # fmt: skip
        self.target_cell = cell(self.targets["utility"].body.gru)
        value = [*self.networks.parameters(), *self.cells.parameters()]
        self.groups = [value, list(self.roles.parameters())]
        self.optimizers = [torch.optim.Adam(group, 6e-4) for group in self.groups]
        contrast = [*self.roles.encoder.parameters(), *self.roles.contrast.parameters()]
        self.contrastive = torch.optim.Adam(contrast, 8e-4)

    def unroll(self, body: nn.Linear, step: nn.GRUCell, x: Tensor) -> Tensor:
        """[B, T, A, D] -> [B, T, A, H], one step at a time."""
        batch, time, agents, _ = x.shape
        hidden, seen = torch.zeros(batch * agents, step.hidden_size), []
        for t in range(time):
            features = functional.relu(body(x[:, t].reshape(batch * agents, -1)))
            hidden = step(features, hidden)
            seen.append(hidden.view(batch, agents, -1))
        return torch.stack(seen, 1)

    def embed(self) -> Tensor:
        """Embeddings [B, T, A, E]."""
        memory = self.unroll(self.roles.body.input, self.cells["embedding"], self.batch["seen"])
        return self.roles.output(memory)

    def condition(self, attention: Any, features: Tensor, history: Tensor, role: Tensor) -> Tensor:
        """What the mixer's weights depend on; the target's, too, reads online features."""
        mixed = attention._attend(history, role) @ attention._heads(attention.value(role))
        attended = attention.output(mixed.transpose(-3, -2).flatten(-2)).flatten(-2)
        return torch.cat([features, attended], -1)

    def td(self) -> None:
        """One TD step."""
        batch, online, target = self.batch, self.networks, self.targets
        role = self.roles.encoder(self.embed())
        x = torch.cat([batch["seen"], role], -1)
        utility = online["utility"]
        q = utility.head(self.unroll(utility.body.input, self.cells["utility"], x))
        with torch.no_grad():
            utility = target["utility"]
            slow = utility.head(self.unroll(utility.body.input, self.target_cell, x))
        features = functional.relu(online["attention"].state(batch["state"]))
        hidden, seen = torch.zeros(len(features), self.cells["history"].hidden_size), []
        for t in range(features.shape[1]):
            hidden = self.cells["history"](features[:, t], hidden)
            seen.append(hidden)
        history = torch.stack(seen, 1)
        condition = self.condition(online["attention"], features, history, role)
        chosen = q.gather(-1, batch["action"][..., None])[..., 0]
        total = online["mixer"](chosen, condition)
        with torch.no_grad():
            best = q.masked_fill(~batch["available"], -1e9).argmax(-1, keepdim=True)
            condition = self.condition(target["attention"], features, history, role)
            value = target["mixer"](slow.gather(-1, best)[..., 0], condition)
            following = functional.pad(value[:, 1:], (0, 0, 0, 1))
            y = batch["reward"][..., None] + 0.99 * batch["going"][..., None] * following
        loss = ((total - y).square()[..., 0] * batch["learnt"]).sum() / batch["learnt"].sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, group in zip(self.optimizers, self.groups, strict=True):
            nn.utils.clip_grad_norm_(group, 10)
            optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.copy_(0.005 * fast + 0.995 * slow)

    def contrast(self) -> None:
        """One contrastive step."""
        with torch.no_grad():
            embedding = self.embed()
        role, key = self.roles.encoder(embedding), self.roles.key_encoder(embedding).detach()
        scores = role @ self.roles.contrast.critic.weight @ key.mT
        total = torch.zeros(())
        for b in range(embedding.shape[0]):
            for t in range(embedding.shape[1]):
                points = embedding[b, t].numpy()
                label = KMeans(3, n_init=1, random_state=0).fit(points).labels_
                for i in range(len(points)):
                    score = scores[b, t, i]
                    positive = torch.logsumexp(score[np.flatnonzero(label == label[i])], 0)
                    total = total + torch.logsumexp(score, 0) - positive
        loss = total / embedding[..., 0].numel()
        self.contrastive.zero_grad()
        loss.backward()
        self.contrastive.step()

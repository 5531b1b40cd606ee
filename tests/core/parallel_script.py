"""What each of two processes does: torchrun … parallel_script.py <out> <dataset>."""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

import train
from agents import AGENTS
from agents.core import config as configuration
from agents.core import parallel
from agents.core.nets import ReturnScale, RunningNorm

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 50


def digest(tensors: list[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def toy(rank: int) -> dict[str, bool]:
    """Gradients, normalisers and scales against those of one process that has all samples."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 16, 3, generator=generator) * torch.tensor([1.0, 5.0]).view(2, 1, 1) + 2
    torch.manual_seed(rank)  # other initial values in each
    net, norm, scale = nn.Linear(3, 1), RunningNorm(3), ReturnScale(3)
    whole_norm, whole_scale = RunningNorm(3), ReturnScale(3)
    net.register_buffer("multiplier", torch.tensor([rank + 1.0]))
    net.register_buffer("precise", torch.tensor([rank + 1.0], dtype=torch.float64))
    before = digest(list(net.parameters()))
    synchronised = parallel.Synchronised([net, norm, scale])
    buffers = [net.multiplier.item(), net.precise.item()] == [1, 1]
    for buffer in (net.multiplier, net.precise):
        buffer.fill_(rank)
    for _ in range(2):
        norm.update(both[rank])
        scale.update(both[rank])
        whole_norm.update(both.flatten(0, 1))
        whole_scale.update(both.flatten(0, 1))
    ours, theirs = [], []
    copy = nn.Linear(3, 1)
    copy.load_state_dict({k: v for k, v in net.state_dict().items() if k in copy.state_dict()})
    for power in (2, 4):  # two backward passes of one update
        for network, x, gradients in ((net, both[rank], ours), (copy, both.flatten(0, 1), theirs)):
            network.zero_grad()
            network(x).pow(power).mean().backward()
            gradients += [p.grad.clone() for p in network.parameters()]
    synchronised.average_buffers()
    return {
        "buffers": buffers and [net.multiplier.item(), net.precise.item()] == [0.5, 0.5],
        "gradients": all(
            torch.allclose(a, b, rtol=1e-5) for a, b in zip(ours, theirs, strict=True)
        ),
        "norm": all(
            torch.allclose(a, b) for a, b in zip(norm.buffers(), whole_norm.buffers(), strict=True)
        ),
        "scale": torch.allclose(scale.std, whole_scale.std, rtol=0.05),  # of n - 1, twice
        "broadcast": rank == 0 or before != digest(list(net.parameters())),
        "everywhere": parallel.everywhere(True) and not parallel.everywhere(rank == 0),
        "highest": parallel.highest(3 * rank) == 3,
    }


def learn(name: str, out: Path, dataset: str, rank: int) -> dict:
    layers, kind = train._layers(f"smoke/{name}")
    smoke: dict = {"log_interval": 1, "total_timesteps": 10**6, "num_envs": 4}
    smoke |= {"infopower": {"prefill": 80}, "corro": {"dataset": dataset}}.get(kind, {})
    config = configuration.build(AGENTS[kind].Config, [*layers, smoke])
    agent = AGENTS[kind](config=config)
    networks = parallel.modules(agent.parts)
    optimisers = [p for p in agent.parts.values() if isinstance(p, torch.optim.Optimizer)]
    trained = [p for o in optimisers for group in o.param_groups for p in group["params"]]
    assert trained
    parameters = [*trained, *(p for m in networks for p in m.parameters())]
    fresh, started = digest(parameters), time.process_time()
    agent.learn(callback=lambda agent, row: agent.num_updates < UPDATES)
    buffers = [b for m in networks for b in m.buffers()]
    if rank == 0:
        agent.save(out / f"{name}.ckpt")
    return {
        "parameters": digest(parameters), "buffers": digest(buffers), "fresh": fresh,
        "observed": None if agent._obs is None else agent._obs.double().sum().item(),
        "seconds": time.process_time() - started,
        "updates": agent.num_updates, "timesteps": agent.num_timesteps,
        "generator": digest([agent.generator.get_state()]),
    }  # fmt: skip


def main(out: Path, dataset: str) -> None:
    torch.set_num_threads(1)
    with parallel.together() as rank:
        results: dict = {"toy": toy(rank)}
        for name in AGENTS:
            results[name] = learn(name, out, dataset, rank)
        (out / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

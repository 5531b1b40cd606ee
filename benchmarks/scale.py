"""What several processes cost: python benchmarks/scale.py [agents=slim,masd] [updates=10]

CPU-seconds of collecting and of learning per update and process, alone and as one of two of
`torchrun`; efficiency is their ratio (1: another process costs nothing). Bytes are what one update
sends per process. CPU-seconds leave out what a process waits for others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["INFOMAX_PROCESSORS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common


def child(name: str, updates: int) -> None:
    """Measure in this process, alone or as one of several."""
    import torch
    import torch.distributed as dist

    import train
    from agents import AGENTS
    from agents.core import config as configuration
    from agents.core import parallel

    torch.set_num_threads(1)
    with parallel.together() as rank:
        layers, kind = train._layers(name)
        config = configuration.build(AGENTS[kind].Config, layers, ["num_envs=64"])
        agent: Any = AGENTS[kind](config=config)
        sent = [0]
        if parallel.world() > 1:
            reduce = dist.all_reduce

            def counted(tensor: torch.Tensor, *args: Any) -> None:
                sent[0] += tensor.nbytes
                reduce(tensor, *args)

            dist.all_reduce = counted
        agent._obs, _ = agent.env.reset(seed=agent.seed)
        agent._state = agent.initial_state(agent.num_envs)
        seconds = {"collect": 0.0, "update": 0.0}
        for i in range(updates + 2):
            if i == 2:  # the first two warm up
                seconds, sent[0] = {"collect": 0.0, "update": 0.0}, 0
            for what, call in (("collect", agent.collect), ("update", agent.update)):
                began = time.process_time()
                call()
                seconds[what] += time.process_time() - began
            if agent.synchronised is not None:
                agent.synchronised.average_buffers()
        if rank == 0:
            parameters = sum(
                p.numel() for m in parallel.modules(agent.parts) for p in m.parameters()
            )
            result = {k: v / updates for k, v in seconds.items()}
            print(
                "RESULT", json.dumps(result | {"sent": sent[0] / updates, "parameters": parameters})
            )


def measure(name: str, updates: int, processes: int) -> dict[str, float]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(Path(__file__)), "child", name, str(updates)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(
        next(line for line in out.splitlines() if "RESULT" in line).split("RESULT")[1]
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["child"]:
        child(arguments[1], int(arguments[2]))
        return
    options = dict(a.split("=", 1) for a in arguments)
    rows = []
    for name in options.get("agents", "slim,masd").split(","):
        one, two = (measure(name, int(options.get("updates", 10)), n) for n in (1, 2))
        for what in ("collect", "update"):
            sent = two["sent"] if what == "update" else ""
            rows.append({
                "agent": name, "what": what, "alone_cpu_s": one[what],
                "one_of_two_cpu_s": two[what], "efficiency": one[what] / two[what],
                "sent_bytes": sent, "parameters": int(one["parameters"]),
            })  # fmt: skip
    common.write_csv(common.ROOT / "benchmarks" / "results" / "scale" / "scaling.csv", rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main(sys.argv[1:])

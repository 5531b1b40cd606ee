"""A run without learning that keeps to the contract of a run directory: lock, checkpoint, signals.

Every step it takes becomes a line of `steps`, so that a test sees what was lost or done twice.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    values = dict(argument.split("=", 1) for argument in arguments[1:])
    run = Path(values["run"])
    run.mkdir(parents=True, exist_ok=True)
    lock = (run / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(f"error: run={run}: another process is using this directory", file=sys.stderr)
        return 2
    if (run / "done.json").exists():
        return 0
    if values.get("mode") == "fail":
        print("error: mode=fail: expected another", file=sys.stderr)
        return 2
    if values.get("mode") == "raise":
        raise RuntimeError("a mistake in the code")
    stop = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.append(number))
    first = int((run / "last.ckpt").read_text()) if (run / "last.ckpt").exists() else 0
    with (run / "starts").open("a") as file:
        file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {first} {time.time()}\n")
    for step in range(first + 1, int(values["steps"]) + 1):
        time.sleep(0.02)
        with (run / "steps").open("a") as file:
            file.write(f"{step}\n")
        (run / "metrics.csv").write_text(f"timesteps,return,odd\n{step},{step / 2},\n")
        (run / "last.tmp").write_text(str(step))
        os.replace(run / "last.tmp", run / "last.ckpt")
        if stop:
            return 130 if stop[0] == signal.SIGINT else 75
    with (run / "ends").open("a") as file:
        file.write(f"{time.time()}\n")
    (run / "done.json").write_text(json.dumps({"steps": int(values["steps"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

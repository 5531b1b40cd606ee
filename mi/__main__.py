"""`python -m mi data.npz x y [--given z]`: an estimate from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mi.estimate import ESTIMATORS, estimate_mi


def main(arguments: Sequence[str] | None = None) -> int:
    """Print I(X; Y) of two arrays; 0, or 2 with one line that names the mistake."""
    parser = argparse.ArgumentParser(prog="python -m mi", description=__doc__)
    parser.add_argument(
        "data",
        help="an .npz file of arrays [N] or [N, d], integers being discrete; or the id of a local "
        "Minari dataset, whose arrays are observations, next_observations, actions, rewards, "
        "terminations, with /key for a part of a dictionary",
    )
    parser.add_argument("x", help="name of an array")
    parser.add_argument("y", help="name of an array")
    parser.add_argument("--given", metavar="z", help="condition on this array")
    parser.add_argument("--estimator", default="auto", choices=["auto", *ESTIMATORS])
    parser.add_argument("--samples", type=int, default=10_000, help="at most, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", action="store_true", help="print the value in bits, alone")
    options = parser.parse_args(arguments)
    chosen = [name for name in (options.x, options.y, options.given) if name is not None]
    try:
        arrays = (_file if options.data.endswith(".npz") else _dataset)(options.data, chosen)
        sizes = {len(a) for a in arrays}
        if len(sizes) == 1 and (n := sizes.pop()) > options.samples:
            rows = np.random.default_rng(options.seed).permutation(n)[: options.samples]
            arrays = [a[rows] for a in arrays]
            print(f"{options.samples} of {n} samples, drawn at random", file=sys.stderr)
        result = estimate_mi(*arrays, estimator=options.estimator, seed=options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{result.bits:.6f}" if options.bits else result)
    return 0


def _file(path: str, names: Sequence[str]) -> list[np.ndarray]:
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] if name in names else None for name in data.files}
    except Exception as error:  # a damaged file makes numpy and zipfile raise a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: expected an .npz file of named arrays; {reason}") from None
    return _chosen(path, names, arrays)


def _dataset(name: str, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of all steps of all episodes, in order."""
    try:
        import minari
    except ImportError:
        raise ValueError(
            f"{name}: no .npz file, and for a Minari dataset minari is not installed"
        ) from None
    if name not in minari.list_local_datasets():
        raise ValueError(f"{name}: neither an .npz file nor a local Minari dataset")
    parts: dict[str, list[np.ndarray]] = {}
    for episode in minari.load_dataset(name).iterate_episodes():
        steps = _flat("", {"actions": episode.actions, "rewards": episode.rewards})
        steps["terminations"] = np.asarray(episode.terminations)
        for key, value in _flat("", {"observations": episode.observations}).items():
            steps[key], steps[f"next_{key}"] = value[:-1], value[1:]
        for key, value in steps.items():
            parts.setdefault(key, []).append(value)
    return _chosen(name, names, {k: np.concatenate(v) for k, v in parts.items()})


def _flat(prefix: str, tree: object) -> dict[str, np.ndarray]:
    """Leaves of nested dictionaries by path, each step's values in one row."""
    if isinstance(tree, Mapping):
        leaves = [_flat(f"{prefix}/{k}" if prefix else str(k), v) for k, v in tree.items()]
        return {k: v for leaf in leaves for k, v in leaf.items()}
    array = np.asarray(tree)
    return {prefix: array.reshape(len(array), -1) if array.ndim > 1 else array}


def _chosen(source: str, names: Sequence[str], data: Mapping[str, Any]) -> list[np.ndarray]:
    missing = [name for name in names if name not in data]
    if missing:
        raise ValueError(f"{source}: no array {missing[0]!r}, only {list(data)}")
    return [data[name] for name in names]


if __name__ == "__main__":
    sys.exit(main())

"""`python -m mi data.npz x y [--given z]`: an estimate from the shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mi.estimate import ESTIMATORS, estimate_mi


def main(arguments: Sequence[str] | None = None) -> int:
    """Print I(X; Y) of two arrays of a file; 0, or 2 with one line that names the mistake."""
    parser = argparse.ArgumentParser(prog="python -m mi", description=__doc__)
    parser.add_argument("file", help="an .npz file of arrays [N] or [N, d]; integers are discrete")
    parser.add_argument("x", help="name of an array")
    parser.add_argument("y", help="name of an array")
    parser.add_argument("--given", metavar="z", help="condition on this array")
    parser.add_argument("--estimator", default="auto", choices=["auto", *ESTIMATORS])
    parser.add_argument("--bits", action="store_true", help="print the value in bits, alone")
    options = parser.parse_args(arguments)
    try:
        if not Path(options.file).exists():
            raise ValueError(f"{options.file}: no such file")
        with np.load(options.file, allow_pickle=False) as data:
            if not isinstance(data, np.lib.npyio.NpzFile):
                raise ValueError(f"{options.file}: expected an .npz file of named arrays")
            chosen = [name for name in (options.x, options.y, options.given) if name is not None]
            missing = [name for name in chosen if name not in data.files]
            if missing:
                raise ValueError(f"{options.file}: no array {missing[0]!r}, only {data.files}")
            result = estimate_mi(*(data[name] for name in chosen), estimator=options.estimator)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{result.bits:.6f}" if options.bits else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

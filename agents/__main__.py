"""`python -m agents …` is `python train.py …`, also where only a wheel is installed."""

import runpy
from pathlib import Path

HERE = Path(__file__).resolve().parent
# A wheel carries train.py and configs/ in agents/command; a checkout has them one level up.
script = next(p for p in (HERE / "command" / "train.py", HERE.parent / "train.py") if p.exists())
runpy.run_path(str(script), run_name="__main__")

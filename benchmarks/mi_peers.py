"""Other people's estimators on the same samples, each in its own virtual environment."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import textwrap
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, foreign_python

PACKAGES = {
    # A clean installation of bmi does not import: its own pins resolve to a jax that its equinox
    # cannot use. torch-mist needs pandas without saying so. "npeet" is npeet-plus, the
    # distribution of NPEET's functions on the package index.
    "bmi": ["benchmark-mi==0.1.3", "jax==0.4.26", "jaxlib==0.4.26", "chex<0.1.87", "scipy<1.13",
            "numpy<2"],
    "mist": ["torch-mist==0.2.17", "pandas<3", "numpy<2"],
    "npeet": ["npeet-plus==0.2.0"],
}  # fmt: skip

_BMI = "import bmi.estimators as e\nvalue = e.{}.estimate(x, y)"
_MIST = """
from torch_mist import estimate_mi
import torch
torch.set_num_threads(1)
torch.manual_seed({seed})
x, y = (torch.tensor(v).float() for v in (x, y))
n = len(x) // 10 * 8
value = estimate_mi(dict(x=x[:n], y=y[:n]), estimator="{}", test_data=dict(x=x[n:], y=y[n:]),
                    verbose=False{})
value = value[0] if isinstance(value, tuple) else value
"""
PEERS = {
    ("bmi", "ksg"): _BMI.format("KSGEnsembleFirstEstimator(neighborhoods=(5,))"),
    ("bmi", "cca"): _BMI.format("CCAMutualInformationEstimator()"),
    ("bmi", "infonce"): _BMI.format("InfoNCEEstimator(verbose=False, seed={seed})"),
    ("bmi", "nwj"): _BMI.format("NWJEstimator(verbose=False, seed={seed})"),
    ("bmi", "dv"): _BMI.format("DonskerVaradhanEstimator(verbose=False, seed={seed})"),
    (
        "npeet",
        "ksg",
    ): "import npeet_plus.estimators as e, math\nvalue = e.mi(x, y, k=5, base=math.e)",
    # Its default hidden_dims makes linear encoders.
    ("mist", "infonce"): _MIST.replace("{}", "infonce", 1).replace("{}", ", hidden_dims=[128, 64]"),
    ("mist", "mine"): _MIST.replace("{}", "mine", 1).replace("{}", ", hidden_dims=[128, 64]"),
    ("mist", "smile"): _MIST.replace("{}", "smile", 1).replace("{}", ", hidden_dims=[128, 64]"),
    ("mist", "doe"): _MIST.replace("{}", "doe", 1).replace("{}", ", hidden_dims=[128, 64]"),
}
"""(Package, estimator) -> code that sets `value` from x [N, d] and y [N, e], in nats."""
OURS = {
    "ksg": "ksg", "cca": "gaussian", "infonce": "infonce", "nwj": "nwj", "dv": "dv",
    "mine": "mine", "smile": "smile", "doe": "doe",
}  # fmt: skip


def ask(
    package: str, estimator: str, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[float, float]:
    """The peer's value, and CPU-seconds of the call without imports.

    A first call on other, fewer samples compiles or loads what there is to compile or load where
    this takes little time (KSG, CCA); training compiles for its own shapes and pays for it.
    """
    python = foreign_python(package, PACKAGES[package])
    code = PEERS[package, estimator].replace("{seed}", str(seed))
    lines = code.strip().splitlines()
    imports = "\n".join(line for line in lines if line.startswith(("import", "from")))
    body = textwrap.indent("\n".join(line for line in lines if line not in imports), "    ")
    program = f"""
import json, sys, time, warnings
import numpy as np
warnings.filterwarnings("ignore")
{imports}
def run(x, y):
    start = time.process_time()
{body}
    return float(value), time.process_time() - start
data = np.load(sys.argv[1])
if {estimator in ("ksg", "cca")}:
    run(data["x"][:200], data["y"][:200])
print("RESULT" + json.dumps(run(data["x"], data["y"])))
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, x=x, y=y)
        done = subprocess.run(
            [python, "-c", program, str(path)], capture_output=True, text=True,
            cwd=ROOT / "benchmarks" / "results",
            env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1",
                 "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"},
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise RuntimeError(f"{package} {estimator}: {done.stderr[-1500:]}")
    value, cpu = json.loads(lines[0].removeprefix("RESULT"))
    return value, cpu

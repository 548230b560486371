"""Importing the package loads no host, draws no random number and changes no setting of the process."""

import os
import subprocess
import sys
from pathlib import Path

HEAVY = (
    "timm", "transformers", "accelerate", "huggingface_hub", "scipy", "networkx", "torchvision", "matplotlib", "sklearn"
)  # fmt: skip

CODE = f"""
import logging, os, random, sys
import numpy, torch
torch.manual_seed(3)
before = (
    torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(), dict(os.environ),
    torch.get_default_dtype(), torch.get_num_threads(), list(logging.getLogger().handlers),
)
import hf_paraminit
after = (
    torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(), dict(os.environ),
    torch.get_default_dtype(), torch.get_num_threads(), list(logging.getLogger().handlers),
)
assert before == after
assert not logging.getLogger("hf_paraminit").handlers
assert hf_paraminit.__version__
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_importing_loads_no_heavy_package_and_has_no_effects() -> None:
    root = Path(__file__).parents[1]
    environment = {key: value for key, value in os.environ.items() if key != "HF_PARAMINIT_DISABLE"}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""

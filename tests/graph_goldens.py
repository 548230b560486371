"""Networks whose reference graphs are recorded, shared by several test files."""

import importlib.util
from pathlib import Path

import pytest
import torchvision
from torch import nn

from hf_paraminit.deepnets.network import DeepNetsNetwork

GOLDEN = Path(__file__).parent / "golden" / "ghn_graph"
KEYS = sorted(path.stem for path in GOLDEN.glob("*.json"))


def build(record: dict) -> nn.Module:
    arguments = dict(record["build"])
    kind = arguments.pop("kind")
    if kind == "torchvision":
        return skip_random_fills(lambda: torchvision.models.get_model(arguments["name"], weights=None))
    if kind == "custom":
        spec = importlib.util.spec_from_file_location("custom_nets", GOLDEN / "custom_nets.py")
        custom_nets = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(custom_nets)
        return getattr(custom_nets, arguments["name"])()
    return DeepNetsNetwork(**arguments)


def skip_random_fills(make):
    """Build without drawing weights: graphs do not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "normal_", "uniform_", "xavier_uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        return make()

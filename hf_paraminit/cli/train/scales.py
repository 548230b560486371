"""Train a graph hypernetwork that predicts how large each tensor should start: what `init="ghn3"` ships with.

First a search: for each kind of network, the scales that a few small networks of timm's families learn fastest from, on
generated tasks. Then the hypernetwork learns the scales of many networks of these families from their graphs: those
that were found and, in front of batch norms, those that give convolutions outputs of unit variance. Every training of
the search is kept, and the hypernetwork has checkpoints: an interrupted run goes on when the same command
is given again. The result is OUTPUT/predictor and OUTPUT/scales.json.
"""

import argparse
import copy
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from hf_paraminit.cli.arguments import Subparsers, positive, verb_parser
from hf_paraminit.cli.train.options import add_loop_options, loop_settings
from hf_paraminit.deepnets.families import IMAGE_SIDE, FamilyNetworks
from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.evaluation.batchnorm import normalize_inputs
from hf_paraminit.evaluation.scale_search import FIRST_TASK, NUM_CALIBRATION, ScaleSearch, generated_task
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.ghn.scale_training import ScaleBatches, ScaledNetwork, ScaleTraining
from hf_paraminit.initializers.ghn3 import GHN3
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.io.atomic import atomic_folder, atomic_write
from hf_paraminit.structure.layers import TABLE
from hf_paraminit.structure.model import ModelStructure
from hf_paraminit.structure.roles import (
    CLASSIFIER,
    DEPTHWISE,
    DEPTHWISE_BRANCH,
    KERNEL,
    LAST,
    LAST_NORM,
    POINTWISE,
    ROLES,
    STEM,
    tensor_roles,
)
from hf_paraminit.training.loop import TrainingConfig, train
from hf_paraminit.training.processes import in_workers

EXAMPLES = """
paraminit train scales --output runs/scales
paraminit train scales --output runs/scales --processes 4
paraminit train scales --output runs/again --scales runs/scales/scales.json --steps 4000
"""

CONVOLUTIONAL = (KERNEL, POINTWISE, DEPTHWISE, LAST, LAST_NORM, STEM, CLASSIFIER)
NORMED = (LAST_NORM,)  # where batch norms follow, the scale of a convolution is that of unit outputs
# A quarter suits the residual networks of the search somewhat better (AUC 38.9 against 37.3 and 34.2 at 1), but costs
# the small ResNet of the benchmark 6 points on digits (validation block, two seeds: 80.3 against 86.2 and 87.5).
SMALLEST = {LAST_NORM: 0.5}
TOKENS = (STEM, POINTWISE, LAST, CLASSIFIER)
# Kind -> families that the search trains, learning rate of AdamW, roles in the order of the search. What is not
# searched keeps scale 1. Attention: halves and doubles of every projection were tried on two small ViTs, and all were
# worse; a stem of a quarter and a classifier of two gained 3.5 AUC on the search's own networks, but did not show on
# the ViT and DeiT of the benchmark and cost a small Hiera 7 (digits, validation block, two seeds: 80.7 against 87.7).
# Networks with batch norms: a search over all roles, without unit outputs, found small last norms and larger depthwise
# layers, and did not carry over from its own residual networks to those of the benchmark. Hierarchical: transformers
# and their like in stages. Standardized: what a kernel computes does not depend on its scale there, but how fast it
# learns does (AUC on a small NF-ResNet, digits, validation block, three seeds: 86.3, 76.2 at scale 1).
KINDS: dict[str, tuple[tuple[str, ...], float, tuple[str, ...]]] = {
    "residual": (("resnet", "regnet", "densenet"), 3e-3, NORMED),
    "mobile": (("mobile", "mobilenet_v3", "efficientnet"), 3e-3, NORMED),
    "convnext": (("convnext", "poolformer", "convmixer"), 2e-3, CONVOLUTIONAL),
    "attention": (("vit", "deit", "swin"), 1e-3, ()),
    "hierarchical": (("davit", "focalnet", "hiera"), 1e-3, (DEPTHWISE_BRANCH, LAST)),
    "mixer": (("mixer", "mixer"), 1e-3, TOKENS),
    "standardized": (("nfnet", "nfnet"), 1e-3, (KERNEL, POINTWISE, LAST)),
    "plain": (("vgg", "vgg", "vgg"), 1e-3, (KERNEL, STEM, CLASSIFIER)),
}
# Families that the hypernetwork learns on in addition, and the kind whose scales they take.
FURTHER = {
    "resnext": "residual",
    "repvgg": "residual",
    "vgg": "residual",
    "starnet": "mobile",
    "edgenext": "convnext",
    "pvt": "attention",
    "xcit": "attention",
    "twins": "hierarchical",
}
NUM_CLASSES, MAX_PARAMETERS = 10, 300_000
CHEAPEST_OF = 8  # networks drawn for each that the search trains
# GHN-3-T (arXiv 2303.04143, table 1), whose decoders of values fall away; 1000 is a class count of the shape code.
MODEL = GHNConfig(hidden_dim=64, num_layers=3, num_heads=8, max_shape=(64, 64, 16, 16), decodes="scales")


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "scales", __doc__, examples=EXAMPLES)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--scales", type=Path, metavar="FILE", help="scales.json of an earlier run: no search")
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help="of the search (default: 1)")
    parser.add_argument("--networks", type=positive, default=60, metavar="N",
                        help="networks per kind that the hypernetwork learns on (default: 60)")  # fmt: skip
    parser.add_argument("--meta-batch", type=positive, default=8, metavar="N", help="networks per step (default: 8)")
    parser.add_argument("--steps", type=positive, default=6000, metavar="N", help="optimiser steps (default: 6000)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="peak rate (default: 1e-3)")
    add_loop_options(parser, warmup_steps=100)


def run(arguments: argparse.Namespace) -> None:
    scales = _read_scales(arguments.scales) if arguments.scales else _search(arguments)
    with atomic_write(arguments.output / "scales.json") as path:
        path.write_text(json.dumps(scales, indent=2))
    ghn = GHN.new(MODEL, seed=arguments.seed)
    batches = ScaleBatches(
        networks=_taught_networks(ghn, scales, arguments), batch_size=arguments.meta_batch, seed=arguments.seed
    )
    config = TrainingConfig(
        output=str(arguments.output),
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        **loop_settings(arguments),
    )
    train(ScaleTraining(ghn), batches, config, identity={"scales": scales, "networks": arguments.networks})
    ghn.metadata = {"training": {"scales": scales, "steps": arguments.steps, "networks": arguments.networks,
                                 "seed": arguments.seed}}  # fmt: skip
    folder = arguments.output / "predictor"
    with atomic_folder(folder) as staging:
        ghn.cpu().half().save_pretrained(staging)
    print(f'Written to {folder}. Use with init="local-dir:{folder}".')


def _read_scales(path: Path) -> dict[str, dict[str, float]]:
    try:
        scales = json.loads(path.read_text())
        kinds = {kind: {str(role): float(scale) for role, scale in scales[kind].items()} for kind in KINDS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingConfigError(
            f"--scales {path}: {error!r}; expected a JSON object that maps {', '.join(KINDS)} to scales by role, as an "
            "earlier run wrote it."
        ) from error
    found = {role: scale for by_role in kinds.values() for role, scale in by_role.items()}
    if bad := {role: scale for role, scale in found.items() if role not in ROLES or not 0 < scale < float("inf")}:
        raise TrainingConfigError(f"--scales {path}: {bad}; expected positive scales of {', '.join(ROLES)}.")
    return kinds


def _search(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Search the scales of every kind, several kinds at a time where there are processes."""
    find = functools.partial(_search_kind, arguments.output / "search", arguments.seed)
    pairs = map(find, KINDS) if arguments.processes == 1 else in_workers(find, KINDS, arguments.processes)
    found = dict(pairs)
    return {kind: found[kind] for kind in KINDS}


def _search_kind(records: Path, seed: int, kind: str) -> tuple[str, dict[str, float]]:
    torch.set_num_threads(1)  # the networks are too small for more, and each process has a core
    families, learning_rate, roles = KINDS[kind]
    networks = [_cheapest(family, kind, seed + position) for position, family in enumerate(families)]
    search = ScaleSearch(
        networks=networks,
        start=_unscaled_start,
        roles=roles,
        learning_rate=learning_rate,
        records=records / kind,
        kind=kind,
        smallest=SMALLEST,
    )
    return kind, search.run()


def _unscaled_start(network: nn.Module, seed: int) -> None:
    """Write what a hypernetwork that has learned nothing predicts: scale 1 everywhere."""
    initialize(network, GHN3(predictor=_untrained()), seed=seed)


@functools.lru_cache(maxsize=1)
def _untrained() -> GHN:
    return GHN.new(MODEL, seed=0).requires_grad_(False)


def _cheapest(family: str, kind: str, seed: int) -> nn.Module:
    """The network with the fewest operations among several that are drawn."""
    source = FamilyNetworks(NUM_CLASSES, families=[family], seed=seed, max_parameters=MAX_PARAMETERS)
    drawn = (source[index] for index in range(1000))
    fitting = (network for network in drawn if kind == _kind_of(family, network))
    return min((next(fitting) for _ in range(CHEAPEST_OF)), key=_operations)


def _kind_of(family: str, network: nn.Module) -> str:
    """What a network of a family counts as; of VGGs that depends on their norms."""
    if family == "vgg" and not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        return "plain"
    return FURTHER.get(family) or next(kind for kind, (families, *_) in KINDS.items() if family in families)


def _operations(network: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE))
    network.train()
    return counter.get_total_flops()


def networks_of_training(number: int, seed: int) -> Iterator[nn.Module]:
    """Draw again the networks that such a predictor was searched and taught with.

    Args:
        number: Networks per kind, as --networks.
        seed: As --seed.
    """
    for kind, (families, *_) in KINDS.items():
        for position, family in enumerate(families):
            yield _cheapest(family, kind, seed + position)
        yield from (network for _, network in _drawn(kind, number, seed))


def _drawn(kind: str, number: int, seed: int) -> Iterator[tuple[int, nn.Module]]:
    """Networks of all families of a kind, and their places in the stream that they are drawn from."""
    families = [name for name in dict.fromkeys([*KINDS[kind][0], *FURTHER]) if FURTHER.get(name, kind) == kind]
    if kind == "plain":
        families = ["vgg"]
    source = FamilyNetworks(NUM_CLASSES, families=families, seed=seed, max_parameters=MAX_PARAMETERS * 4)
    drawn = ((index, source[index]) for index in itertools.count())
    fitting = (pair for pair in drawn if _kind_of(source.family(pair[0]), pair[1]) == kind)
    return itertools.islice(fitting, number)


def _taught_networks(
    ghn: GHN, scales: dict[str, dict[str, float]], arguments: argparse.Namespace
) -> Sequence[ScaledNetwork]:
    """Networks of all families, equally many of each kind, with their known scales."""
    return [
        ScaledNetwork.from_module(ghn, network, _known_scales(network, scales[kind], index))
        for kind in tqdm(KINDS, desc="graphs", unit="kind")
        for index, network in _drawn(kind, arguments.networks, arguments.seed)
    ]


def _known_scales(network: nn.Module, by_role: Mapping[str, float], seed: int) -> dict[str, float]:
    """Scales of a network's weights: those of their roles, and in front of batch norms those of unit outputs."""
    network = copy.deepcopy(network)
    _unscaled_start(network, seed)
    structure = ModelStructure(network)
    known = dict.fromkeys(structure.kinds.named(TABLE), 1.0)
    known |= {name: by_role.get(role, 1.0) for name, role in tensor_roles(structure).items()}
    with torch.no_grad():
        for name, scale in known.items():
            network.get_parameter(name).mul_(scale)
    (images, _), _ = generated_task(FIRST_TASK)
    factors = normalize_inputs(network, images[:NUM_CALIBRATION])
    return {name: scale * factors.get(name, 1.0) for name, scale in known.items()}

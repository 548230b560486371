"""Search how large the tensors of one kind of network should start, teach it to a small graph hypernetwork, and use it.

    python examples/own_scales.py --output my_scales

This is the built-in predictor's recipe for one kind, plain convolutional networks without norms; the command
`paraminit train scales` makes all of it.

Time: 2 minutes on one CPU core. An interrupted search goes on where it stopped.
Expected: on digits, which neither search nor teaching saw, a deeper network of that kind learns much faster from the
predicted scales than from its default initialization (mean accuracy over the first 150 steps: 25 and 87 %).
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

import hf_paraminit
from hf_paraminit import GHN, GHNConfig
from hf_paraminit.deepnets.families import FamilyNetworks
from hf_paraminit.evaluation.digits import load_digits
from hf_paraminit.evaluation.learning_curve import Recipe, learning_curve, mean_accuracy
from hf_paraminit.evaluation.plain_vgg import PlainVGG
from hf_paraminit.evaluation.scale_search import ScaleSearch
from hf_paraminit.ghn.scale_training import ScaleBatches, ScaledNetwork, ScaleTraining
from hf_paraminit.initializers.ghn3 import GHN3
from hf_paraminit.structure.model import ModelStructure
from hf_paraminit.structure.roles import CLASSIFIER, KERNEL, tensor_roles
from hf_paraminit.training.loop import TrainingConfig, train

CONFIG = GHNConfig(hidden_dim=32, num_layers=2, num_heads=4, decodes="scales")
LEARNING_RATE = 1e-3
WIDTHS = (16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 96, 96, 96, 96)


def plain_networks(number: int) -> list[nn.Module]:
    """Small networks of convolutions, ReLUs and poolings, for 10 classes of 32-pixel images."""
    source = FamilyNetworks(10, families=["vgg"], max_parameters=150_000)
    drawn = (source[index] for index in range(len(source)))
    plain = (network for network in drawn if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()))
    return [next(plain) for _ in range(number)]


def speed(network: nn.Module) -> float:
    """Mean accuracy on held-out digits over the first 150 steps, in percent."""
    recipe = Recipe(learning_rate=LEARNING_RATE, evaluate_at=(10, 20, 40, 80, 150))
    return mean_accuracy(learning_curve(network, load_digits("train"), load_digits("validation"), recipe, seed=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("my_scales"))
    parser.add_argument("--steps", type=int, default=200, help="of teaching")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    networks = plain_networks(8)
    ghn = GHN.new(CONFIG, seed=0)
    untrained = copy.deepcopy(ghn).requires_grad_(False)
    search = ScaleSearch(
        networks=networks[:1],
        start=lambda network, seed: hf_paraminit.initialize(network, GHN3(predictor=untrained), seed=seed),
        roles=(KERNEL, CLASSIFIER),
        learning_rate=LEARNING_RATE,
        records=arguments.output / "search",
        kind="plain",
        seeds=(0,),
    )
    scales = search.run()
    print("found:", scales)

    taught = []
    for network in networks:
        roles = tensor_roles(ModelStructure(network))
        by_name = {name: scales.get(role, 1.0) for name, role in roles.items()}
        taught.append(ScaledNetwork.from_module(ghn, network, by_name))
    config = TrainingConfig(output=str(arguments.output), steps=arguments.steps, learning_rate=3e-3, cpu=True)
    train(ScaleTraining(ghn), ScaleBatches(networks=taught, batch_size=4), config)
    ghn.save_pretrained(arguments.output / "predictor")

    torch.manual_seed(0)
    default = PlainVGG(num_classes=10, in_chans=3, widths=WIDTHS)
    predicted = copy.deepcopy(default)
    hf_paraminit.initialize(predicted, f"local-dir:{arguments.output / 'predictor'}", input_size=32)
    print(f"default: {speed(default):.1f} %, predicted scales: {speed(predicted):.1f} %")


if __name__ == "__main__":
    main()

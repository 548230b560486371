"""Train a graph hypernetwork of your own on a few small networks, store it, and use it by its folder.

    python examples/own_predictor.py --steps 300 --output my_ghn

The command `paraminit train ghn3` does the same at a larger scale, with a pool of random networks.

Time: 20 s on one CPU core.
Expected: on images of ten kinds, a network that was not among the three scores about 10 % with torch's weights (chance)
and about 25 % with predicted ones, without any training of its own.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit import GHN, GHNConfig
from hf_paraminit.ghn.train import MetaBatches, MetaTraining, TargetNetwork
from hf_paraminit.training.loop import TrainingConfig, train
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

IMAGES = SyntheticImages(SyntheticSpec(size=32))


def small_network(width: int, depth: int) -> nn.Module:
    """A plain convolutional network for 32 x 32 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    head = nn.Linear(width, IMAGES.num_classes)
    network = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    network.expected_input_sz = (3, 32, 32)
    return network


def images_at(index: int) -> tuple[Tensor, Tensor]:
    """Batch number `index`, always the same: an interrupted run goes on exactly where it was."""
    images, labels = IMAGES.batch("train", index, 64)
    return normalize(images), labels


def accuracy(network: nn.Module) -> float:
    """Share of validation images that a network gets right, with batch-norm statistics from the training images."""
    hf_paraminit.recalibrate_batchnorm(network, (images_at(index) for index in range(4)))
    images, labels = IMAGES.batch("validation", 0, 500)
    with torch.no_grad():
        return (network.eval()(normalize(images)).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small graph hypernetwork.")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("my_ghn"), help="folder for the run and the predictor")
    args = parser.parse_args()

    config = GHNConfig(
        hidden_dim=32,
        num_layers=2,
        num_heads=4,
        max_shape=(32, 32, 3, 3),
        num_classes=IMAGES.num_classes,
    )
    networks = [TargetNetwork.from_module(small_network(width, depth)) for width, depth in [(16, 1), (24, 2), (32, 3)]]
    trained = train(
        MetaTraining(GHN.new(config, seed=0)),
        MetaBatches(networks=networks, images_at=images_at, first=args.steps // 4, joining=args.steps // 4),
        TrainingConfig(output=str(args.output), steps=args.steps, learning_rate=1e-2, warmup_steps=20, cpu=True),
    )
    predictor = args.output / "predictor"
    trained.ghn.save_pretrained(predictor)

    torch.manual_seed(0)
    unseen = small_network(width=28, depth=2)  # not one of those that the hypernetwork was trained on
    print(f"accuracy of an unseen network, weights of torch:   {accuracy(unseen):.1%}")
    print(hf_paraminit.initialize(unseen, f"local-dir:{predictor}"))
    print(f"accuracy of an unseen network, predicted weights:  {accuracy(unseen):.1%}")


if __name__ == "__main__":
    main()

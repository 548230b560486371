"""Fine-tune a graph hypernetwork itself on one network: what it writes for this network is trained, not the network.

    python examples/own_predictor.py --output my_ghn
    python examples/finetune_predictor.py --predictor my_ghn/predictor --steps 200

Gradients of the network's loss flow through its weights into the predictor (as GHN-3's code does it: plain SGD, there
with rate 0.1, gradients clipped at 5). The graph is traced once, and the network never gets weights of its own.

Time: 15 s on one CPU core, after the 20 s of own_predictor.py.
Expected: the network, which the hypernetwork was not trained on, scores about 25 % before and about 27 % after, in both
cases without any training of its own: so small a hypernetwork gains little.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from own_predictor import accuracy, images_at, small_network
from torch import nn

import hf_paraminit
from hf_paraminit import GHN
from hf_paraminit.ghn.train import TargetNetwork


def accuracy_of_predicted(predictor: Path) -> float:
    """Share of validation images that a network with predicted weights gets right, without training of its own."""
    network = small_network(width=28, depth=2)
    hf_paraminit.initialize(network, f"local-dir:{predictor}")
    return accuracy(network)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a graph hypernetwork on one network.")
    parser.add_argument("--predictor", type=Path, default=Path("my_ghn/predictor"), help="what own_predictor.py made")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="of SGD; large predictors bear 0.1")
    parser.add_argument("--output", type=Path, default=Path("my_tuned_ghn"), help="folder for the tuned predictor")
    args = parser.parse_args()
    print(f"accuracy before: {accuracy_of_predicted(args.predictor):.1%}")

    ghn = GHN.from_pretrained(args.predictor).train().requires_grad_()
    target = TargetNetwork.from_module(small_network(width=28, depth=2))  # its graph, and a skeleton without weights
    optimizer = torch.optim.SGD(ghn.parameters(), lr=args.learning_rate)
    for step in range(1, args.steps + 1):
        images, labels = images_at(10_000 + step)
        weights = ghn.predict(target.graph, target.shapes)
        loss = F.cross_entropy(target.forward(weights, images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(ghn.parameters(), 5.0)
        optimizer.step()
        if step % 10 == 0 or step == args.steps:
            print(f"step {step}: loss {loss.item():.3f}")

    ghn.eval().save_pretrained(args.output)
    print(f"accuracy after:  {accuracy_of_predicted(args.output):.1%}")


if __name__ == "__main__":
    main()

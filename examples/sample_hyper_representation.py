"""Load a hyper-representation, look at what it holds, and sample networks from it.

    python examples/sample_hyper_representation.py --predictor my_representation/predictor --networks 5

`examples/train_hyper_representation.py` makes one; without --predictor, what ships with the package is used.

Time: 5 s on one CPU core.
Expected: as many different networks as asked for, each close to one anchor of the zoo; the same ones on every run.
"""

import argparse
from pathlib import Path

import torch

import hf_paraminit
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.sample import COUPLINGS, Sampling
from hf_paraminit.hyperrep.zoo_nets import ZooCNN
from hf_paraminit.initializers.hyperrep_sample import BUILTIN_FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictor", type=Path, default=BUILTIN_FOLDER / "cnn-tiny")
    parser.add_argument("--networks", type=int, default=5)
    arguments = parser.parse_args()

    representation = HyperRepresentation.from_pretrained(arguments.predictor)
    layout, anchors = representation.layout, representation.anchors
    print(f"{representation.config.architecture}: {layout.num_values} weights in {layout.num_tokens} tokens")
    best, worst = representation.accuracies.max(), representation.accuracies.min()
    print(f"anchors: {len(anchors)}, accuracy {worst:.2f} to {best:.2f}")

    for coupling in COUPLINGS:
        drawn = representation.sample(arguments.networks, seed=0, sampling=Sampling(coupling=coupling))
        gaps = torch.cdist(drawn.codes.flatten(1), anchors.float().flatten(1)).amin(1)
        print(f"coupling {coupling}: mean distance to the nearest anchor {gaps.mean():.2f}")

    model = ZooCNN("cnn-tiny", in_chans=layout.layers[0].shapes[0][1], img_size=16)
    report = hf_paraminit.initialize(model, "hyperrep-sample", source=str(arguments.predictor), seed=0)
    print(report)


if __name__ == "__main__":
    main()

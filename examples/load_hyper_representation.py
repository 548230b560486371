"""Load a hyper-representation and read networks with it: their codes, and how well these bring the weights back.

    python examples/load_hyper_representation.py --predictor my_representation/predictor --zoo my_representation/zoo

`examples/train_hyper_representation.py` makes both. Auto-encoders of the published code are read by
`hf_paraminit.hyperrep.checkpoint`, without running anything in their files.

Time: 5 s on one CPU core.
Expected: one code per token, reconstructions that differ from the weights by clearly less than their spread, and how
much of a network's accuracy a linear map reads off its code.
"""

import argparse
from pathlib import Path

import torch

from hf_paraminit.hyperrep.autoencoder import embedding
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.populations import property_scores
from hf_paraminit.hyperrep.train import prepare_zoo
from hf_paraminit.hyperrep.zoo import Zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictor", type=Path, default=Path("my_representation/predictor"))
    parser.add_argument("--zoo", type=Path, default=Path("my_representation/zoo"))
    arguments = parser.parse_args()

    representation = HyperRepresentation.from_pretrained(arguments.predictor)
    zoo = Zoo.open(arguments.zoo)
    prepared = prepare_zoo(zoo, token_dim=representation.layout.token_dim, norms=representation.config.norms)
    states = prepared.states["test"]
    with torch.no_grad():
        codes = representation.encode(states)
        restored = representation.decode(codes)
    print(f"{len(codes)} test networks: codes {tuple(codes.shape)}, embeddings {tuple(embedding(codes).shape)}")
    for name, weights in restored.items():
        error, spread = (weights - states[name]).std(), states[name].std()
        print(f"{name}: error {error:.3f}, spread of the weights {spread:.3f}")
    for name, scores in property_scores(representation, prepared).items():
        print(f"{name}: R2 {scores['codes']:.2f} from codes, {scores['weight statistics']:.2f} from weight statistics")


if __name__ == "__main__":
    main()

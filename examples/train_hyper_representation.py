"""Build a small model zoo, train a hyper-representation on it, and store it as a predictor.

    python examples/train_hyper_representation.py --models 40 --epochs 15 --steps 600 --output my_representation

The commands `paraminit zoo build` and `paraminit train hyperrep` do the same for any network and data.

Time: 2 minutes on one CPU core.
Expected: the reconstruction explains clearly more of the training networks' weights than of the held-out networks'.
"""

import argparse
from functools import partial
from pathlib import Path

from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.train import prepare_zoo, train_representation
from hf_paraminit.hyperrep.zoo_build import ZooPlan, build_zoo
from hf_paraminit.hyperrep.zoo_nets import ZooCNN
from hf_paraminit.hyperrep.zoo_training import LabelledImages, ZooData
from hf_paraminit.training.loop import TrainingConfig
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

IMAGES = SyntheticImages(SyntheticSpec(size=16, grayscale=True))


def block(number: int, count: int) -> LabelledImages:
    """Images that no other block has."""
    pixels, labels = IMAGES.batch("train" if number == 0 else "validation", number, count)
    return normalize(pixels), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=Path("my_representation"))
    arguments = parser.parse_args()

    data = ZooData(name="synthetic", train=block(0, 1000), validation=block(1, 300), test=block(2, 500))
    plan = ZooPlan.grid(range(arguments.models), epochs=arguments.epochs, learning_rate=3e-3)
    network = partial(ZooCNN, "cnn-tiny", in_chans=1, img_size=16)
    zoo = build_zoo(arguments.output / "zoo", network, data, plan, architecture="cnn-tiny")
    accuracy = float(zoo.select(last=True).values("test_accuracy").mean())
    print(f"zoo: {len(zoo.model_ids)} networks, mean test accuracy {accuracy:.2f}")

    prepared = prepare_zoo(zoo, token_dim=73)
    tokens = prepared.layout.num_tokens
    representation = train_representation(
        prepared,
        SequenceConfig(token_dim=73, latent_dim=32, window=tokens, position_axes=4, projection_dim=0),
        TrainingConfig(
            output=str(arguments.output / "run"), steps=arguments.steps, learning_rate=2e-3, weight_decay=0.0,
            warmup_steps=int(0.3 * arguments.steps), cpu=True,
        ),
        batch_size=32,
        name="cnn-tiny for 16 x 16 grey images",
    )  # fmt: skip
    for split, scores in representation.metadata["reconstruction"].items():
        print(f"reconstruction R2, {split}: {scores['all']:.2f}")
    representation.save_pretrained(arguments.output / "predictor")
    print(f"written to {arguments.output / 'predictor'}")


if __name__ == "__main__":
    main()

"""Build a small model zoo, load it, align it and turn its networks into tokens.

    python examples/zoo_load.py
    python examples/zoo_load.py --seeds 40 --epochs 25 --output zoo

The zoo holds small convolutional networks that learned to tell generated images apart, with a checkpoint for every
epoch. A finished zoo is not built again. A published zoo is loaded the same way after `paraminit zoo import`.

Time: 1 minute on one CPU core.
Expected: a test accuracy of about 0.97 after the last epoch; 4160 weights in 40 tokens of 217 numbers; a distance of
about 11.9 to the first network, 9.7 after alignment; the weights that are put together again from tokens are the same.
"""

import argparse
from pathlib import Path

import torch

from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.hyperrep.zoo_build import ZooPlan, build_zoo
from hf_paraminit.hyperrep.zoo_nets import ZooCNN
from hf_paraminit.hyperrep.zoo_training import ZooData
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize


def network() -> ZooCNN:
    return ZooCNN("cnn-tiny", in_chans=1, img_size=16)


def generated_images() -> ZooData:
    images = SyntheticImages(SyntheticSpec(size=16, grayscale=True))
    blocks = {}
    for number, (name, split, count) in enumerate(
        (("train", "train", 1000), ("validation", "validation", 300), ("test", "validation", 500))
    ):
        pixels, labels = images.batch(split, number, count)
        blocks[name] = (normalize(pixels), labels)
    return ZooData(name="synthetic", **blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and load a small model zoo.")
    parser.add_argument("--seeds", type=int, default=12, help="networks for each learning rate")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the images")
    parser.add_argument("--output", type=Path, default=Path("zoo"), help="folder of the zoo")
    args = parser.parse_args()

    plan = ZooPlan.grid(range(args.seeds), {"learning_rate": [2e-3, 4e-3]}, epochs=args.epochs)
    build_zoo(args.output, network, generated_images(), plan, architecture="cnn-tiny")

    zoo = Zoo.open(args.output).clean(max_abs=10)
    last = zoo.select(split="train", last=True)
    accuracy = last.values("test_accuracy")
    print(f"{len(zoo)} checkpoints of {len(zoo.model_ids)} networks, {len(last)} of them at the end of training")
    print(f"test accuracy {accuracy.mean():.3f} +- {accuracy.std():.3f}, best {accuracy.max():.3f}")

    layout = TokenLayout.from_tensors(zoo.tensors)
    tokens = layout.tokenize(last.stacked())
    print(f"{layout.num_values} weights in {layout.num_tokens} tokens of {layout.token_dim}: {tuple(tokens.shape)}")

    spec, permutations = zoo.permutations, last.align()
    assert spec is not None
    aligned = torch.stack(
        [layout.tokenize(spec.apply(weights, permutations[row.model_id])) for row, weights in last]
    )  # fmt: skip
    before, after = ((found[1:] - tokens[0]).flatten(1).norm(dim=1).mean() for found in (tokens, aligned))
    print(f"distance to the first network: {before:.2f}, aligned {after:.2f}")

    restored, model = layout.detokenize(tokens[0]), network()
    model.load_state_dict(restored)
    print("restored exactly:", all(torch.equal(restored[name], w) for name, w in last.state_dict(0).items()))


if __name__ == "__main__":
    main()

"""A vision transformer without training data: search its topology, grow it, predict its weights.

    python examples/search_and_grow_asvit.py --steps 20 --stop-params 2.5

Scores need neither labels nor training, and length distortion not even images. A real search takes 500 steps at 224
pixels (`paraminit asvit search`); this one shows the way. The same folder again goes on where it stopped. No download.

Time: one minute on one CPU core.
Expected: one line per grown network, then a report in which every tensor of the last one is predicted.
"""

import argparse
from pathlib import Path

import timm

import hf_paraminit
from hf_paraminit.asvit.candidates import ScoreSettings
from hf_paraminit.asvit.grow import GrowthConfig, grow
from hf_paraminit.asvit.search import SearchConfig, search


def main() -> None:
    parser = argparse.ArgumentParser(description="Search, grow and initialise an As-ViT.")
    parser.add_argument("--steps", type=int, default=20, help="sampled topologies")
    parser.add_argument("--stop-params", type=float, default=2.5, help="million parameters at which growth ends")
    parser.add_argument("--output", type=Path, default=Path("asvit"), help="folder of scores and logs")
    args = parser.parse_args()

    scores = ScoreSettings(rewards=("exp",), repeats=1, img_size=64)
    found = search(SearchConfig(scores=scores, steps=args.steps, width=8), output=args.output / "search")
    print(f"topology {found.architecture.topology}")

    growth = GrowthConfig(arch=found.architecture.topology, scores=scores, stop_params=args.stop_params * 1e6)
    series = grow(growth, output=args.output / "growth").path
    for arch in series:
        print(f"grown    {arch}  {arch.num_params() / 1e6:.2f} M parameters, {arch.macs(64) / 1e6:.0f} M MACs at 64 px")

    model = timm.create_model("asvit", arch=str(series[-1]), img_size=64, num_classes=10, init="ghn3")
    print(model._hf_paraminit)
    under_prediction = hf_paraminit.complexity(model, input_size=(3, 64, 64), repeats=2)
    drawn = hf_paraminit.complexity(model, input_size=(3, 64, 64), repeats=2, reinit="native")
    print(f"length distortion: predicted {under_prediction.length_distortion:.3g}, drawn {drawn.length_distortion:.3g}")


if __name__ == "__main__":
    main()

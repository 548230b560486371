"""A vision transformer without training data: search its topology, grow it, predict its weights, or hand them on.

    python examples/search_and_grow_asvit.py --steps 20 --stop-params 2.5

Scores need neither labels nor training, and length distortion not even images. A real search takes 500 steps at 224
pixels (`paraminit asvit search`); this one shows the way. The last network of the growth series is then started three
times: from timm's draw, from predicted weights, and (experimental) from the network before it, trained for a moment on
generated images. The same folder again goes on where it stopped. No download.

Time: half a minute on one CPU core.
Expected: one line per grown network, a report in which every tensor of the last one is predicted, and that handed on
weights answer as the smaller network does on about two thirds of new images before any training, the others by chance.
"""

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.asvit.candidates import ScoreSettings
from hf_paraminit.asvit.expansion import hand_on
from hf_paraminit.asvit.grow import GrowthConfig, grow
from hf_paraminit.asvit.search import SearchConfig, search
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

IMG_SIZE, BATCH_SIZE = 64, 16
IMAGES = SyntheticImages(SyntheticSpec(size=IMG_SIZE))


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(steps):
        pixels, labels = IMAGES.batch("train", step, BATCH_SIZE)
        optimizer.zero_grad()
        F.cross_entropy(model(normalize(pixels)), labels).backward()
        optimizer.step()


@torch.no_grad()
def answers(model: nn.Module) -> Tensor:
    return model.eval()(normalize(IMAGES.batch("validation", 0, 64)[0])).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Search, grow and initialise an As-ViT.")
    parser.add_argument("--steps", type=int, default=20, help="sampled topologies")
    parser.add_argument("--stop-params", type=float, default=2.5, help="million parameters at which growth ends")
    parser.add_argument("--train-steps", type=int, default=60, help="of the network whose weights are handed on")
    parser.add_argument("--output", type=Path, default=Path("asvit"), help="folder of scores and logs")
    args = parser.parse_args()

    scores = ScoreSettings(rewards=("exp",), repeats=1, img_size=IMG_SIZE)
    found = search(SearchConfig(scores=scores, steps=args.steps, width=8), output=args.output / "search")
    print(f"topology {found.architecture.topology}")

    growth = GrowthConfig(arch=found.architecture.topology, scores=scores, stop_params=args.stop_params * 1e6)
    series = [growth.real((1, 1, 1, 1), growth.width), *grow(growth, output=args.output / "growth").path]
    for arch in series[1:]:
        print(f"grown    {arch}  {arch.num_params() / 1e6:.2f} M parameters, {arch.macs(64) / 1e6:.0f} M MACs at 64 px")

    sizes = {"img_size": IMG_SIZE, "num_classes": IMAGES.num_classes}
    before = timm.create_model("asvit", arch=str(series[-2]), init="ghn3", **sizes)
    train(before, args.train_steps)
    settings = {
        "default": {},
        "ghn3": {"init": "ghn3"},
        "handed on": {"init": hand_on, "init_kwargs": {"donor": before}},
    }
    starts = {
        name: timm.create_model("asvit", arch=str(series[-1]), **sizes, **start) for name, start in settings.items()
    }
    print(starts["ghn3"]._hf_paraminit)
    for name, model in starts.items():
        agreement = (answers(model) == answers(before)).float().mean()
        print(f"{agreement:.0%} of the answers are those of the smaller trained network, from {name}")

    size = (3, IMG_SIZE, IMG_SIZE)
    under_prediction = hf_paraminit.complexity(starts["ghn3"], input_size=size, repeats=2)
    drawn = hf_paraminit.complexity(starts["ghn3"], input_size=size, repeats=2, reinit="native")
    print(f"length distortion: predicted {under_prediction.length_distortion:.3g}, drawn {drawn.length_distortion:.3g}")


if __name__ == "__main__":
    main()

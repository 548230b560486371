"""Learned initial weights for any torch module: your own, or only a part of somebody else's.

    python examples/own_module.py --output own_module_weights

Predicts all weights of a small network of our own, and the last stage and classifier of torchvision's ResNet-18, the
rest of which keeps its values. Then estimates batch-norm statistics from data, and saves both state dicts.

Time: 5 s on one CPU core.
Expected: two reports, 12 of 12 tensors predicted for our network and 17 of 17 offered ones for the ResNet, whose other
45 stay; then 2 and 20 batch-norm layers estimated, and two files.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

import hf_paraminit
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize


class SmallNet(nn.Module):
    """Three convolutions, one of them around a skip connection."""

    expected_input_sz = (3, 32, 32)  # the sample that the network is traced with; 3 x 224 x 224 by default

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.down = nn.Conv2d(32, 96, 3, stride=2, padding=1)
        self.classifier = nn.Linear(96, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = self.down(features + self.branch(features))
        return self.classifier(features.relu().mean(dim=(2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict weights of torch modules.")
    parser.add_argument("--output", type=Path, default=Path("own_module_weights"), help="folder to write")
    args = parser.parse_args()
    images = SyntheticImages(SyntheticSpec(size=32))

    own = SmallNet(images.num_classes)
    report = hf_paraminit.initialize(own, "ghn3")
    print(report)

    partly = resnet18(num_classes=images.num_classes)
    names = [name for name, _ in partly.named_parameters() if name.startswith(("layer4.", "fc."))]
    report = hf_paraminit.initialize(partly, "ghn3", names=names)
    print(report)
    print(f"{sum(1 for _ in partly.parameters()) - len(report.predicted)} tensors were not offered and are as before")

    args.output.mkdir(parents=True, exist_ok=True)
    for label, model in (("own", own), ("resnet18", partly)):
        batches = [normalize(images.batch("train", index, 64)[0]) for index in range(4)]
        num_layers = hf_paraminit.recalibrate_batchnorm(model, batches)
        with torch.no_grad():
            logits = model.eval()(batches[0])
        print(f"{label}: {num_layers} batch-norm layers estimated, logits with variance {logits.var():.2f}")
        save_file(model.state_dict(), args.output / f"{label}.safetensors")
        print(f"wrote {args.output / label}.safetensors")


if __name__ == "__main__":
    main()

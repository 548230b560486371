"""A network of torchvision on 32-pixel images: adapted, predicted, and looked at before any training.

    python examples/torchvision_small_images.py --model resnet18

Networks made for 224 pixels lose small images in their first layers, so these are changed before the prediction. Then
the predicted network gets batch-norm statistics, and two simple classifiers say what its features are worth beside
those of the network's own start. All of torchvision at once: paraminit evaluate ghn3 --networks 'torchvision:*'.

Time: 70 s on one CPU core.
Expected: with resnet18 and the built-in predictor of values, nearest mean 23.3 % (own start 17.0) and linear 34.7 %
(29.7).
"""

import argparse
from dataclasses import replace

import torch
from torchvision.models import get_model

import hf_paraminit
from hf_paraminit.evaluation.tasks import load_task
from hf_paraminit.evaluation.zero_shot import ZeroShot, zero_shot_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18", help="name of a torchvision classifier")
    parser.add_argument("--init", default="ghn3:builtin-values", help="what predicts the weights")
    parser.add_argument("--data", default="synthetic", help="images, as `paraminit compare --data` takes them")
    parser.add_argument("--images", type=int, default=1000, help="most images to learn from, and to test on")
    arguments = parser.parse_args()

    task = load_task(arguments.data, size=32)
    blocks = {name: getattr(task, name) for name in ("train", "validation")}
    task = replace(task, **{name: (x[: arguments.images], y[: arguments.images]) for name, (x, y) in blocks.items()})
    print(f"{arguments.model} on {task.name}: {task.num_classes} classes, {len(task.validation[0])} test images")
    for init in (None, arguments.init):
        torch.manual_seed(0)
        model = get_model(arguments.model, weights=None, num_classes=task.num_classes)
        hf_paraminit.adapt_to_small_images(model)
        report = hf_paraminit.initialize(model, init)
        found = zero_shot_accuracy(model, task, "validation", ZeroShot(readout="features"))
        scores = ", ".join(f"{name} {value:.1f} %" for name, value in found.items())
        print(f"{init or 'default'}: {len(report.predicted)} tensors predicted; {scores}")


if __name__ == "__main__":
    main()

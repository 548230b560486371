"""Train a small ViT, then start a larger one from it: grown by LiGO, against timm's own start.

    python examples/grow_vit.py --donor-steps 300 --steps 60

The donor has width 48 and 2 layers, the target width 96 and 4 layers. LiGO learns in 40 steps how the donor's neurons
and layers combine to the target's; the target is then trained as usual. Downwards, from a large donor to a small
target, use init="weight-selection" in the same way.

Time: 18 s of one CPU core.
Expected: a loss of about 1.9 before and 1.6 after 60 steps when grown, of 2.3 and 2.0 from timm's own weights; the
donor ends at about 1.6.
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_paraminit  # noqa: F401 (adds init= to timm)
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

IMAGES = SyntheticImages(SyntheticSpec(size=32))
HEAD_DIM, BATCH_SIZE = 24, 32


def batch(step: int) -> tuple[Tensor, Tensor]:
    pixels, labels = IMAGES.batch("train", step, BATCH_SIZE)
    return normalize(pixels), labels


def vit(width: int, depth: int, **start: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "num_heads": width // HEAD_DIM, "num_classes": IMAGES.num_classes}
    return timm.create_model("vit_tiny_patch16_224", embed_dim=width, depth=depth, **sizes, **start)


def train(model: nn.Module, steps: int, first: int = 0) -> list[float]:
    """Train in place; the loss before each step."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for step in range(first, first + steps):
        images, labels = batch(step)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--donor-steps", type=int, default=300)
    parser.add_argument("--growth-steps", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()

    donor = vit(48, 2, init="mimetic")
    print(f"donor: loss {train(donor, arguments.donor_steps)[-1]:.2f} after {arguments.donor_steps} steps")
    settings = {"donor": donor, "steps": arguments.growth_steps, "batches": batch}
    targets = {"default": vit(96, 4), "ligo": vit(96, 4, init="ligo", init_kwargs=settings)}
    print(targets["ligo"]._hf_paraminit)

    first = arguments.donor_steps  # images that neither the donor nor LiGO has seen
    curves = {name: train(model, arguments.steps, first) for name, model in targets.items()}
    for name, losses in curves.items():
        print(f"{name:8} first loss {losses[0]:.2f}, last {losses[-1]:.2f}")


if __name__ == "__main__":
    main()

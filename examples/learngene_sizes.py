"""Train a small learngene, then make vision transformers of several sizes from it that work at once.

    python examples/learngene_sizes.py --steps 400 --output my_learngene

The learngene is trained inside a larger net, whose weights it generates anew in each step. The command
`paraminit train learngene-LeTs` does the same at a larger scale, with a teacher.

Time: 60 s on one CPU core.
Expected: on images of ten kinds, every size scores about 10 % with timm's weights (chance), and with generated ones,
without any training of its own, from about 25 % (4 layers of width 32) to about 63 % (8 layers of width 64).
"""

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

import hf_paraminit  # noqa: F401 (adds init= to timm)
from hf_paraminit.lets.aux_net import AuxNet
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.training.synthetic import SyntheticImages, SyntheticSpec, normalize

IMAGES = SyntheticImages(SyntheticSpec(size=32))
CONFIG = LeTsConfig(
    embed_dim=32,
    num_heads=2,
    depth=4,
    aux_dim=64,
    pairs=adjacent_pairs(4, 4),
    patch_size=8,
    img_size=32,
    num_classes=IMAGES.num_classes,
    depth_init="alternate_noisy",
    gene_init="scaled",
)
SIZES = [(4, 32), (5, 48), (6, 64), (8, 64)]  # layers, width


def train_learngene(steps: int) -> LeTsGenerator:
    """Train with AdamW on labels; weight decay for matrices only."""
    net = AuxNet(LeTsGenerator.new(CONFIG, seed=0), drop_path_rate=0.0)
    matrices = [parameter for parameter in net.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in net.parameters() if parameter.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        pixels, labels = IMAGES.batch("train", step, 64)
        loss = F.cross_entropy(net(normalize(pixels)), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.generator


def vision_transformer(depth: int, width: int, init: str | None) -> nn.Module:
    """timm's model in the shape that the learngene was trained in: the mean of the patches, no class token."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        depth=depth,
        embed_dim=width,
        num_heads=width // CONFIG.head_dim,
        class_token=False,
        global_pool="avg",
        num_classes=IMAGES.num_classes,
        init=init,
    )


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    images, labels = IMAGES.batch("validation", 0, 500)
    return (model.eval()(normalize(images)).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a learngene and make models of several sizes from it.")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("my_learngene"), help="folder for the learngene")
    args = parser.parse_args()

    train_learngene(args.steps).save_pretrained(args.output)
    print("layers  width  timm   generated")
    for depth, width in SIZES:
        plain, made = (vision_transformer(depth, width, init) for init in (None, f"local-dir:{args.output}"))
        print(f"{depth:<7} {width:<6} {accuracy(plain):<6.1%} {accuracy(made):.1%}")


if __name__ == "__main__":
    main()

"""A small training script as users of timm write them; it knows nothing of hf_paraminit."""

import argparse
import os
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from timm import create_model
from timm.data import create_loader, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, ParseKwargs, init_distributed_device, random_seed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset


class GeneratedImages(Dataset):
    transform = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple:
        image = Image.new("RGB", (64, 64), (20 * index, 255 - 20 * index, 90))
        return (image if self.transform is None else self.transform(image)), index % 3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="test_vit")
    parser.add_argument("--num-classes", type=int, default=3)
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.device = "cpu"
    device = init_distributed_device(args)
    random_seed(7, args.rank)  # as in timm's own script: every rank draws other weights, and DDP takes those of rank 0
    model = create_model(args.model, num_classes=args.num_classes, **args.model_kwargs)
    save_file(model.state_dict(), args.output / f"start_{args.rank}.safetensors")
    optimizer = create_optimizer_v2(model, opt="sgd", lr=args.lr)
    data_config = resolve_model_data_config(model)
    loader = create_loader(
        GeneratedImages(), data_config["input_size"], 4, is_training=True, use_prefetcher=False, num_workers=0,
        distributed=args.distributed, device=device,
    )  # fmt: skip
    trained = DistributedDataParallel(model) if args.distributed else model
    loss_fn = LabelSmoothingCrossEntropy(0.1)
    for images, labels in loader:
        optimizer.zero_grad()
        loss_fn(trained(images), labels).backward()
        optimizer.step()
    save_file(model.state_dict(), args.output / f"end_{args.rank}.safetensors")
    if args.rank == 0:
        CheckpointSaver(model, optimizer, args, checkpoint_dir=str(args.output)).save_checkpoint(0, metric=1.0)
    if args.distributed:
        torch.distributed.barrier()
        os._exit(0)  # without the interpreter's end, where gloo's threads now and then abort the process


if __name__ == "__main__":
    main()

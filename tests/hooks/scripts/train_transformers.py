"""A small image-classification script as users of Transformers write them; it knows nothing of hf_paraminit."""

from dataclasses import dataclass, field

import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForImageClassification, HfArgumentParser, Trainer, TrainingArguments


@dataclass
class ModelArguments:
    model_name_or_path: str
    num_labels: int = field(default=3)
    ignore_mismatched_sizes: bool = field(default=False)


class GeneratedImages(Dataset):
    def __init__(self, side: int) -> None:
        self.side = side

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": torch.full((3, self.side, self.side), index / 8), "labels": index % 3}


def main() -> None:
    parser = HfArgumentParser((ModelArguments, TrainingArguments))
    model_args, training_args = parser.parse_args_into_dataclasses()
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, num_labels=model_args.num_labels)
    torch.manual_seed(training_args.process_index)
    model = AutoModelForImageClassification.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
    )
    rank = training_args.process_index
    save_file(model.state_dict(), f"{training_args.output_dir}/start_{rank}.safetensors")
    trainer = Trainer(model=model, args=training_args, train_dataset=GeneratedImages(config.image_size))
    result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    save_file(model.state_dict(), f"{training_args.output_dir}/end_{rank}.safetensors")


if __name__ == "__main__":
    main()

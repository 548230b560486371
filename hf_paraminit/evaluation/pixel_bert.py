"""A small BERT (arXiv 1810.04805) that reads an image as a sentence of pixels: attention without patches."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertConfig, BertModel


class PixelBert(nn.Module):
    """Pixels of a small copy of the image as tokens, the mean of their states, one classifier.

    Args:
        num_classes: Outputs.
        in_chans: Channels of the images.
        grid: Side of the copy; its pixels are the grid * grid tokens.
        width: Of the states.
        depth: Layers.
        num_heads: Attention heads.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        grid: int = 8,
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=1,  # tokens come as states
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            intermediate_size=4 * width,
            max_position_embeddings=grid**2,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.shrink = nn.AdaptiveAvgPool2d(grid)
        self.embed = nn.Linear(in_chans, width)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, num_classes) of images (B, in_chans, H, W)."""
        tokens = self.embed(self.shrink(images).flatten(2).transpose(1, 2))
        return self.head(self.bert(inputs_embeds=tokens).last_hidden_state.mean(1))

    def get_classifier(self) -> nn.Module:
        """The last layer, as timm's models name it."""
        return self.head

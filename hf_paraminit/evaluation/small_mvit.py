"""A small MViT-V2 (arXiv 2112.01526), whose sizes timm takes as one object rather than as arguments."""

from __future__ import annotations

from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg


class SmallMViT(MultiScaleVit):
    """Three stages for images of 32 pixels: attention between pooled queries and keys.

    Args:
        num_classes: Outputs.
        in_chans: Channels of the images.
        img_size: Side of the images in pixels.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, img_size: int = 32) -> None:
        config = MultiScaleVitCfg(
            depths=(1, 1, 2),
            embed_dim=24,
            stride_q=((1, 1), (2, 2), (2, 2)),  # type: ignore[arg-type]  # timm means one pair per stage
            stride_kv_adaptive=(2, 2),
        )
        super().__init__(config, img_size=(img_size, img_size), in_chans=in_chans, num_classes=num_classes)

"""As-ViT as a timm model: four stages of window attention, merging in between, a two-layer head.

"Auto-scaling Vision Transformers without Training" (ICLR 2022, arXiv 2202.11921). Importing this file registers
`asvit_seed`, `asvit_small`, `asvit_base`, `asvit_large` and `asvit`, which takes any `arch`. There are no pretrained
weights: none were ever published.
"""

# Axes: B images, H/W side of the token grid, C channels, N tokens in a window, D channels of one head.

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, resample_abs_pos_embed, trunc_normal_, use_fused_attn
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices  # timm's own models take it from there as well
from torch import Tensor, nn

from hf_paraminit.asvit.architecture import (
    BASE,
    LARGE,
    MERGE_STRIDE,
    NUM_STAGES,
    PATCH_STRIDE,
    SEED,
    SMALL,
    Architecture,
    as_architecture,
)
from hf_paraminit.asvit.checkpoint import timm_names
from hf_paraminit.asvit.errors import ArchitectureError

__all__ = ["AsViT"]

DEFAULT_INIT_STD = 0.02
POOLS = ("avg", "")


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after an axis so that a convolution gives ceil(size / stride) values; the odd one comes last."""
    outputs = (size + stride - 1) // stride
    missing = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return missing // 2, missing - missing // 2


class PatchEmbed(nn.Module):
    """A strided convolution with overlapping or dilated kernels, and a norm. (B, 3, I, I) -> (B, H, W, C)."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, img_size: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.img_size = img_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=PATCH_STRIDE, **dd)
        self.norm = nn.LayerNorm(embed_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, dilation = self.proj.kernel_size[0], self.proj.stride[0], self.proj.dilation[0]
        top, bottom = same_padding(x.shape[2], kernel, stride, dilation)
        left, right = same_padding(x.shape[3], kernel, stride, dilation)
        x = self.proj(F.pad(x, [left, right, top, bottom]))
        return self.norm(x.permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Attention inside `splits` x `splits` windows, without shift or position bias. (B, H, W, C) -> the same.

    Grids that the splits do not divide are padded; no token attends to padding.
    """

    fused_attn: torch.jit.Final[bool]

    def __init__(
        self, dim: int, num_heads: int, splits: int, attn_drop: float = 0.0, proj_drop: float = 0.0, **dd: Any
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.splits = splits
        self.fused_attn = use_fused_attn()
        inner = self.head_dim * num_heads
        self.qkv = nn.Linear(dim, 3 * inner, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(inner, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1], x.shape[2]
        window_h, window_w = _window_side(H, self.splits), _window_side(W, self.splits)
        pad_h, pad_w = -H % window_h, -W % window_w
        if pad_h + pad_w == 0:
            windows = self._attend(_partition(x, window_h, window_w), None)
            return _join(windows, H, W, window_h, window_w)
        padded = F.pad(x, [0, 0, 0, pad_w, 0, pad_h])
        is_token = F.pad(torch.ones_like(x[:, :, :, :1], dtype=torch.bool), [0, 0, 0, pad_w, 0, pad_h])
        mask = _partition(is_token, window_h, window_w)[:, None, None, :, 0]
        windows = self._attend(_partition(padded, window_h, window_w), mask)
        return _join(windows, H + pad_h, W + pad_w, window_h, window_w)[:, :H, :W]

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(windows, N, C) -> the same; `mask` (windows, 1, 1, N) is true for tokens that may be attended to."""
        num_windows, N = x.shape[0], x.shape[1]
        qkv = self.qkv(x).reshape(num_windows, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            x = self.attn_drop(scores.softmax(dim=-1)) @ v
        x = x.transpose(1, 2).reshape(num_windows, N, self.num_heads * self.head_dim)
        return self.proj_drop(self.proj(x))


class Block(nn.Module):
    """Pre-norm window attention and feed-forward layer, each with a residual path."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        splits: int,
        ffn_ratio: int,
        drop_path: float,
        attn_drop: float,
        proj_drop: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = WindowAttention(dim, num_heads, splits, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        mlp = Mlp(dim, dim * ffn_ratio, act_layer=nn.GELU, drop=proj_drop, **dd)
        self.mlps = nn.ModuleList([nn.Sequential(nn.LayerNorm(dim, **dd), mlp)])  # a list, as in the published names
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        for mlp in self.mlps:
            x = x + self.drop_path2(mlp(x))
        return x


class Merging(nn.Module):
    """Overlapping patches of tokens, every second one, normalized and projected. (B, H, W, C) -> (B, H/2, W/2, out)."""

    def __init__(self, dim: int, out_dim: int, kernel: int, **dd: Any) -> None:
        super().__init__()
        self.kernel = kernel
        self.reduction = nn.Linear(kernel**2 * dim, out_dim, bias=False, **dd)
        self.norm = nn.LayerNorm(kernel**2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W = x.shape[0], x.shape[1], x.shape[2]
        top, bottom = same_padding(H, self.kernel, 2, 1)
        left, right = same_padding(W, self.kernel, 2, 1)
        x = F.pad(x.permute(0, 3, 1, 2), [left, right, top, bottom])
        x = F.unfold(x, self.kernel, stride=2).transpose(1, 2)  # channel, kernel row, kernel column
        return self.reduction(self.norm(x)).reshape(B, (H + 1) // 2, (W + 1) // 2, -1)


class Stage(nn.Module):
    """Blocks of one width, then the merging in front of the next stage, if there is one."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample
        self.grad_checkpointing = False

    def forward_blocks(self, x: Tensor) -> Tensor:
        """The stage without its merging."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.forward_blocks(x))


class AsViT(nn.Module):
    """As-ViT; any image size works, and where the grids divide evenly nothing is padded.

    Args:
        arch: Architecture string.
        img_size: Side of the images in pixels, for which a position embedding is stored; elsewhere it is resampled.
        in_chans: Channels of the images.
        num_classes: Of the classifier; with 0 the model returns what would enter it.
        global_pool: "avg" for the mean over tokens, "" to keep tokens apart.
        embed_dim: Width of the first stage, instead of the one in `arch`.
        depths: Blocks of each stage, instead of those in `arch`.
        pos_embed: Whether tokens get a learned position embedding; the trained models have one, searches do not.
        drop_rate: Dropout in front of the classifier.
        pos_drop_rate: Dropout after the position embedding.
        proj_drop_rate: Dropout after projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 in the first.
        init_std: Standard deviation of the weights of linear layers at the start.
        device: Where to build it.
        dtype: Of the parameters.

    Raises:
        ArchitectureError: `arch` cannot be read or describes no network.
    """

    def __init__(
        self,
        arch: str | Architecture = SEED,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int | None = None,
        depths: Sequence[int] | None = None,
        pos_embed: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        init_std: float = DEFAULT_INIT_STD,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        _check_pool(global_pool)
        architecture = _overridden(as_architecture(arch), embed_dim, depths)
        self.arch = architecture.canonical
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.init_std = init_std
        self.num_features = self.head_hidden_size = self.embed_dim = architecture.dims[-1]
        image = _image_size(img_size)
        self.grid_size = (-(-image[0] // PATCH_STRIDE), -(-image[1] // PATCH_STRIDE))
        self.absolute_pos_embed = (
            nn.Parameter(torch.empty(1, self.grid_size[0] * self.grid_size[1], architecture.dims[0], **dd))
            if pos_embed
            else None
        )
        self.patch_embed = PatchEmbed(architecture.patch_sizes[0], in_chans, architecture.dims[0], image, **dd)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drops = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        self.layers = nn.Sequential(*_stages(architecture, drop_path_rate, drops, dd))
        self.feature_info = [
            {"num_chs": dim, "reduction": PATCH_STRIDE * MERGE_STRIDE**i, "module": f"layers.{i}.blocks"}
            for i, dim in enumerate(architecture.dims)
        ]
        self.norm: nn.Module = nn.LayerNorm(self.num_features, **dd)
        fc = nn.Linear(self.num_features, self.num_features, **dd)
        self.pre_logits: nn.Module = nn.Sequential(OrderedDict(fc=fc, act=nn.Tanh()))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier(self.num_features, num_classes, dd)
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Draw the weights of all linear layers and the position embedding from truncated normal distributions.

        Args:
            needs_reset: Also draw the patch convolution, as torch does, and set norms to 1 and 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=self.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif needs_reset and isinstance(module, nn.Conv2d | nn.LayerNorm):
                module.reset_parameters()
        if self.absolute_pos_embed is not None:
            trunc_normal_(self.absolute_pos_embed, std=DEFAULT_INIT_STD)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside biases and norms."""
        return {"absolute_pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order parameters by depth, for layer-wise learning rates."""
        merging, norm = (r"^layers\.(\d+)\.downsample", (99998,)), (r"^norm|^pre_logits", (99999,))
        blocks = [(r"^layers\.(\d+)\.blocks\.(\d+)", None), merging, norm]
        return {"stem": r"^absolute_pos_embed|^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        for stage in self.layers:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer, an identity if there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a new classifier; the tanh layer in front of it stays.

        Args:
            num_classes: 0 for none.
            global_pool: as for the class; None to keep it.
        """
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        weight = self.patch_embed.proj.weight
        self.head = _classifier(self.num_features, num_classes, {"device": weight.device, "dtype": weight.dtype})
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=self.init_std)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalized tokens of the last stage. (B, 3, I, I) -> (B, N, C)."""
        return self.norm(self._tokens(x))

    def forward_pooled(self, x: Tensor) -> Tensor:
        """Mean over the tokens of the last stage before the norm, which As-ViT's scores look at. -> (B, C)."""
        return self._tokens(x).mean(dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the tokens that `forward_features` gives; with `pre_logits` what enters the classifier."""
        if self.global_pool == "avg":
            x = x.mean(dim=1)
        x = self.head_drop(self.pre_logits(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits. (B, 3, I, I) -> (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features at the end of stages, each before its merging.

        Args:
            x: (B, 3, I, I) images.
            indices: Which stages; the last n if a number, all if None.
            norm: Whether the last stage's feature passes the final norm.
            stop_early: Leave out stages after the last wanted one.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Return the list alone.

        Returns:
            The features, after the final tokens (as `forward_features`) unless `intermediates_only`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ArchitectureError(f"output_fmt must be 'NCHW' or 'NHWC', found {output_fmt!r}.")
        wanted, last = feature_take_indices(len(self.layers), indices)
        intermediates = []
        x = self._embed(x)
        stages = self.layers[: last + 1] if stop_early else self.layers
        for i, stage in enumerate(stages):
            assert isinstance(stage, Stage)
            x = stage.forward_blocks(x)
            if i in wanted:
                feature = self.norm(x) if norm and i == NUM_STAGES - 1 else x
                intermediates.append(feature if output_fmt == "NHWC" else feature.permute(0, 3, 1, 2).contiguous())
            x = stage.downsample(x)
        if intermediates_only:
            return intermediates
        x = x.flatten(1, 2)
        return (self.norm(x) if len(stages) == NUM_STAGES else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what features at `indices` do not need; returns the kept indices."""
        wanted, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm or last < NUM_STAGES - 1:
            self.norm = nn.Identity()
        if prune_head:
            self.pre_logits, self.head = nn.Identity(), nn.Identity()
        return wanted

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            pos_embed: Tensor = self.absolute_pos_embed
            grid = (x.shape[1], x.shape[2])
            if grid != self.grid_size:
                pos_embed = _resampled(pos_embed, grid, self.grid_size)
            x = (x.flatten(1, 2) + pos_embed).reshape(x.shape)
        return self.pos_drop(x)

    def _tokens(self, x: Tensor) -> Tensor:
        return self.layers(self._embed(x)).flatten(1, 2)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of the published code or of timm as this model takes it, position embedding resampled."""
    filtered = timm_names(state_dict)
    own, found = getattr(model, "absolute_pos_embed", None), filtered.get("absolute_pos_embed")
    if own is not None and found is not None and found.shape[1] != own.shape[1]:
        side = round(found.shape[1] ** 0.5)
        assert isinstance(model, AsViT)
        filtered["absolute_pos_embed"] = _resampled(found, model.grid_size, (side, side))
    return filtered


def _resampled(pos_embed: Tensor, grid: tuple[int, int], old_grid: tuple[int, int]) -> Tensor:
    return resample_abs_pos_embed(pos_embed, new_size=list(grid), old_size=list(old_grid), num_prefix_tokens=0)


def _stages(arch: Architecture, drop_path_rate: float, drops: Mapping[str, float], dd: dict[str, Any]) -> list[Stage]:
    rates = iter(torch.linspace(0, drop_path_rate, sum(arch.depths), device="cpu").tolist())
    stages = []
    for i, (dim, heads) in enumerate(zip(arch.dims, arch.stage_heads, strict=True)):
        block = partial(Block, dim, heads, arch.splits[i], arch.ffn_ratios[i], **drops, **dd)
        blocks = [block(drop_path=next(rates)) for _ in range(arch.depths[i])]
        is_last = i == NUM_STAGES - 1
        merging = nn.Identity() if is_last else Merging(dim, arch.dims[i + 1], arch.patch_sizes[i + 1], **dd)
        stages.append(Stage(blocks, merging))
    return stages


def _overridden(arch: Architecture, embed_dim: int | None, depths: Sequence[int] | None) -> Architecture:
    if depths is not None and len(depths) != NUM_STAGES:
        raise ArchitectureError(f"depths must have {NUM_STAGES} numbers, one per stage, found {list(depths)}.")
    return arch.scaled(depths=depths, width=embed_dim)


def _image_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < 1:
        raise ArchitectureError(f"img_size must be at least 1 pixel, found {img_size}.")
    return height, width


def _classifier(num_features: int, num_classes: int, dd: dict[str, Any]) -> nn.Module:
    return nn.Linear(num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()


def _check_pool(global_pool: str) -> None:
    if global_pool not in POOLS:
        raise ArchitectureError(f"As-ViT knows global_pool 'avg' and '' (tokens stay apart), found {global_pool!r}.")


def _window_side(side: int, splits: int) -> int:
    """The published floor(side / splits) where that divides the grid; else as many windows as fit after padding."""
    window = max(1, side // splits)
    return window if side % window == 0 else (side + splits - 1) // splits


def _partition(x: Tensor, window_h: int, window_w: int) -> Tensor:
    """(B, H, W, C) -> (windows, N, C)."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // window_h, window_h, W // window_w, window_w, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window_h * window_w, C)


def _join(windows: Tensor, H: int, W: int, window_h: int, window_w: int) -> Tensor:
    """The inverse of `_partition`."""
    C = windows.shape[-1]
    x = windows.reshape(-1, H // window_h, W // window_w, window_h, window_w, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, C)


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in ("asvit", "asvit_seed", "asvit_small", "asvit_base", "asvit_large")}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> AsViT:
    return build_model_with_cfg(
        AsViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", tuple(range(NUM_STAGES))), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def asvit(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """As-ViT of any architecture, `arch="..."`; the seed topology without one. No position embedding unless asked."""
    return _create("asvit", pretrained, **kwargs)


@register_model
def asvit_seed(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """The seed topology that the authors' search returned, as the search builds it: no position embedding."""
    return _create("asvit_seed", pretrained, **{"arch": SEED, **kwargs})


@register_model
def asvit_small(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """As-ViT-Small, 29.1 M parameters."""
    return _create("asvit_small", pretrained, **{"arch": SMALL, "pos_embed": True, **kwargs})


@register_model
def asvit_base(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """As-ViT-Base, 52.6 M parameters."""
    return _create("asvit_base", pretrained, **{"arch": BASE, "pos_embed": True, **kwargs})


@register_model
def asvit_large(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """As-ViT-Large, 88.1 M parameters; the architecture string is the authors'."""
    return _create("asvit_large", pretrained, **{"arch": LARGE, "pos_embed": True, **kwargs})

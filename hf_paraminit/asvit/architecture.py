"""The architecture string of As-ViT (ICLR 2022, arXiv 2202.11921): parsing, canonical form, sizes and counts.

    stage|stage|stage|stage|head        stage = K,S,E[,L]        head = H[,W]

K is the patch kernel (stage 1: of the image embedding; later ones: of the token merging in front of the stage), S the
window splits per side, E the expansion of the feed-forward layers, L the blocks, H the heads of stage 4 and W the width
of stage 1.
"""

# Axes: R side of the token grid, d width of a stage, K kernel, S splits, E expansion, L depth.

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_paraminit.asvit.errors import ArchitectureError

NUM_STAGES = 4
DEFAULT_WIDTH = 32
MAX_DIM = 1024  # widest stage
PATCH_STRIDE, MERGE_STRIDE = 4, 2
STAGE_FIELDS = ("K (patch kernel)", "S (splits)", "E (expansion)", "L (depth)")
HEAD_FIELDS = ("H (heads)", "W (width)")
SHAPE = "K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|H[,W]"
# The topology and the largest model as the authors state them; Small and Base by matching the published totals.
SEED = "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"
SMALL = "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88"
BASE = "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116"
LARGE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"

Quadruple = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What one architecture string says; every instance describes a network that can be built.

    Args:
        patch_sizes: K of each stage; at least 4 in the first and 2 in the others, the strides, so that no pixel or
            token is skipped.
        splits: S of each stage.
        ffn_ratios: E of each stage.
        depths: L of each stage.
        heads: H, heads of the last stage; earlier ones have H//4, H//2 and so on, so at least 8.
        width: W of the first stage; each later one doubles it, up to 1024.

    Raises:
        ArchitectureError: Values that describe no network; all of them in one message.
    """

    patch_sizes: Quadruple
    splits: Quadruple
    ffn_ratios: Quadruple
    depths: Quadruple = (1, 1, 1, 1)
    heads: int
    width: int = DEFAULT_WIDTH

    def __post_init__(self) -> None:
        if faults := [*self._faults()]:
            raise ArchitectureError(f"No network can be built from {self.canonical!r}: {'; '.join(faults)}.")

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Read an architecture string.

        Args:
            text: Four stages and a head between bars. L is given in all stages or in none.

        Raises:
            ArchitectureError: The string has another form, or describes no network; all faults in one message.
        """
        if not isinstance(text, str):
            raise ArchitectureError(f"An architecture is written as a string {SHAPE}, found {text!r}.")
        parts = text.split("|")
        if len(parts) != NUM_STAGES + 1:
            raise ArchitectureError(
                f"Cannot read the architecture {text!r}: expected {NUM_STAGES} stages and a head between bars, "
                f"{SHAPE}, found {len(parts)} parts."
            )
        faults: list[str] = []
        stages = [_fields(part, f"stage {i}", STAGE_FIELDS, 3, faults) for i, part in enumerate(parts[:-1], 1)]
        head = _fields(parts[-1], "head", HEAD_FIELDS, 1, faults)
        with_depth = [i for i, part in enumerate(parts[:-1], 1) if part.count(",") == len(STAGE_FIELDS) - 1]
        if 0 < len(with_depth) < NUM_STAGES:
            faults.append(f"only stages {_listed(with_depth)} give L (depth): give it in all stages or in none")
        if faults:
            raise ArchitectureError(f"Cannot read the architecture {text!r}: {'; '.join(faults)}. Write {SHAPE}.")
        patch_sizes, splits, ffn_ratios, *depths = zip(*stages, strict=True)
        return cls(
            patch_sizes=patch_sizes,
            splits=splits,
            ffn_ratios=ffn_ratios,
            depths=depths[0] if depths else (1, 1, 1, 1),
            heads=head[0],
            width=head[1] if len(head) == len(HEAD_FIELDS) else DEFAULT_WIDTH,
        )

    def __str__(self) -> str:
        return self.canonical

    @property
    def canonical(self) -> str:
        """The string with every field."""
        stages = zip(self.patch_sizes, self.splits, self.ffn_ratios, self.depths, strict=True)
        return "|".join([*(_joined(stage) for stage in stages), f"{self.heads},{self.width}"])

    @property
    def topology(self) -> str:
        """The string without depths and width, as the search prints it."""
        stages = zip(self.patch_sizes, self.splits, self.ffn_ratios, strict=True)
        return "|".join([*(_joined(stage) for stage in stages), str(self.heads)])

    def scaled(self, *, depths: Sequence[int] | None = None, width: int | None = None) -> Architecture:
        """The same topology with other depths or another width.

        Raises:
            ArchitectureError: as for the class.
        """
        changes = {"depths": depths and tuple(depths), "width": width}
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]

    @property
    def dims(self) -> Quadruple:
        """Width of each stage."""
        return tuple(min(MAX_DIM, self.width * 2**i) for i in range(NUM_STAGES))

    @property
    def stage_heads(self) -> Quadruple:
        """Attention heads of each stage."""
        return tuple(self.heads // 2 ** (NUM_STAGES - 1 - i) for i in range(NUM_STAGES))

    @property
    def inner_dims(self) -> Quadruple:
        """Width inside the attention of each stage; smaller than its width where the heads do not divide it."""
        pairs = zip(self.dims, self.stage_heads, strict=True)
        return tuple(dim // heads * heads for dim, heads in pairs)  # type: ignore[return-value]

    def grids(self, img_size: int) -> Quadruple:
        """Side of the token grid of each stage, for an image side in pixels; odd grids are padded before merging."""
        sides = [-(-img_size // PATCH_STRIDE)]
        for _ in range(NUM_STAGES - 1):
            sides.append(-(-sides[-1] // MERGE_STRIDE))
        return tuple(sides)  # type: ignore[return-value]

    def check_img_size(self, img_size: int) -> None:
        """Refuse image sides at which the network would have to pad: scores and counts are not defined there.

        Raises:
            ArchitectureError: Not a multiple of 32, or windows that do not divide a grid.
        """
        unit = PATCH_STRIDE * MERGE_STRIDE ** (NUM_STAGES - 1)
        if img_size < 1 or img_size % unit:
            raise ArchitectureError(
                f"Images of {img_size} x {img_size} pixels do not divide into the grids of {self.canonical}: choose a "
                f"multiple of {unit}."
            )
        faults = [
            f"stage {i} has {side} x {side} tokens, which {splits} splits per side do not divide"
            for i, (side, splits) in enumerate(zip(self.grids(img_size), self.splits, strict=True), 1)
            if splits > side or side % (side // splits)
        ]
        if faults:
            raise ArchitectureError(
                f"{self.canonical} has no whole windows at {img_size} x {img_size} pixels: {'; '.join(faults)}. Choose "
                "another image size or fewer splits."
            )

    def num_params(self, num_classes: int = 1000, *, in_chans: int = 3, pos_embed_img_size: int | None = None) -> int:
        """Trainable parameters.

        Args:
            num_classes: Of the classifier; 0 for none.
            in_chans: Channels of the images.
            pos_embed_img_size: Image side of a position embedding; None for a network without one.
        """
        first, last = self.dims[0], self.dims[-1]
        total = first * in_chans * self.patch_sizes[0] ** 2 + 3 * first
        for d, inner, ratio, depth in zip(self.dims, self.inner_dims, self.ffn_ratios, self.depths, strict=True):
            attention = 3 * inner * (d + 1) + d * (inner + 1)
            feed_forward = 2 * ratio * d * d + ratio * d + d
            total += depth * (attention + feed_forward + 4 * d)
        for kernel, d, d_next in zip(self.patch_sizes[1:], self.dims, self.dims[1:], strict=False):
            total += kernel**2 * d * (d_next + 2)
        total += 2 * last + last * (last + 1) + num_classes * (last + 1)
        return total + (0 if pos_embed_img_size is None else self.grids(pos_embed_img_size)[0] ** 2 * first)

    def macs(self, img_size: int = 224, num_classes: int = 1000, *, in_chans: int = 3) -> int:
        """Multiply-accumulates for one image, counted as in the published profiler (which calls them FLOPs).

        Convolution bias and both pooled vectors count; norms, softmax, GELU and padding are free.

        Args:
            img_size: Side of the image, in pixels.
            num_classes: Of the classifier; 0 for none.
            in_chans: Channels of the images.

        Raises:
            ArchitectureError: as for `check_img_size`.
        """
        self.check_img_size(img_size)
        sides, last = self.grids(img_size), self.dims[-1]
        total = sides[0] ** 2 * self.dims[0] * (in_chans * self.patch_sizes[0] ** 2 + 1)
        for i, (side, d, inner) in enumerate(zip(sides, self.dims, self.inner_dims, strict=True)):
            window = side // self.splits[i]
            products = 2 * (side // window) ** 2 * window**4 * inner
            linear = side**2 * (4 * inner * d + 2 * self.ffn_ratios[i] * d * d)
            total += self.depths[i] * (linear + products)
        for i in range(1, NUM_STAGES):
            total += sides[i] ** 2 * self.patch_sizes[i] ** 2 * self.dims[i - 1] * self.dims[i]
        return total + 2 * (sides[-1] ** 2 + 1) * last + last**2 + last * num_classes

    def _faults(self) -> list[str]:
        least = {"patch_sizes": (PATCH_STRIDE, *[MERGE_STRIDE] * 3), "splits": (1,) * 4, "ffn_ratios": (1,) * 4}
        least |= {"depths": (1,) * 4}
        faults = []
        for field, title in zip(least, STAGE_FIELDS, strict=True):
            for i, (value, bound) in enumerate(zip(getattr(self, field), least[field], strict=True), 1):
                if value < bound:
                    faults.append(f"{title} of stage {i} must be at least {bound}, found {value}")
        smallest_heads = 2 ** (NUM_STAGES - 1)
        if self.heads < smallest_heads:
            faults.append(f"{HEAD_FIELDS[0]} must be at least {smallest_heads}, one in stage 1, found {self.heads}")
        if self.width < 1:
            faults.append(f"{HEAD_FIELDS[1]} must be at least 1, found {self.width}")
        for i, (heads, dim) in enumerate(zip(self.stage_heads, self.dims, strict=True), 1):
            if heads > dim >= 1:
                faults.append(f"stage {i} has {heads} heads but width {dim}, which leaves 0 channels for each head")
        return faults


def as_architecture(arch: str | Architecture) -> Architecture:
    """An architecture, from itself or its string.

    Raises:
        ArchitectureError: as for `Architecture.parse`.
    """
    return arch if isinstance(arch, Architecture) else Architecture.parse(arch)


def _fields(part: str, where: str, titles: Sequence[str], required: int, faults: list[str]) -> tuple[int, ...]:
    words = part.split(",")
    if not required <= len(words) <= len(titles):
        expected = f"{required} or {required + 1}"
        faults.append(f"{where} {part!r} needs {expected} numbers, {', '.join(titles)}, found {len(words)}")
        return ()
    for title, word in zip(titles, words, strict=False):
        if re.fullmatch(r"\s*[0-9]{1,6}\s*", word) is None:
            faults.append(f"{title} of {where} must be a whole number, found {word!r}")
    return () if faults else tuple(int(word) for word in words)


def _joined(values: Sequence[int]) -> str:
    return ",".join(str(value) for value in values)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)

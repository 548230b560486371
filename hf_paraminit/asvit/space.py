"""The search space of As-ViT: 12 independent choices, 4,556,250 topologies of depth one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from hf_paraminit.asvit.architecture import DEFAULT_WIDTH, NUM_STAGES, Architecture
from hf_paraminit.asvit.errors import ArchitectureError

# In the order of the published policy: patch kernels, splits (stage 4 has one window), expansions, heads.
CHOICES: Mapping[str, tuple[int, ...]] = {
    "K1": (4, 5, 6, 7, 8),
    "K2": (2, 3, 4),
    "K3": (2, 3, 4),
    "K4": (2, 3, 4),
    "S1": (2, 4, 8),
    "S2": (1, 2, 4),
    "S3": (1, 2),
    "E1": (2, 3, 4, 5, 6),
    "E2": (2, 3, 4, 5, 6),
    "E3": (2, 3, 4, 5, 6),
    "E4": (2, 3, 4, 5, 6),
    "H": (16, 32, 64),
}
LAST_SPLITS = 1


@dataclass(frozen=True)
class SearchSpace:
    """Which values each field of a topology may take.

    Args:
        choices: Field -> values, at least one each; the fields of the published space, in its order.
    """

    choices: tuple[tuple[int, ...], ...] = tuple(CHOICES.values())

    def __post_init__(self) -> None:
        if len(self.choices) != len(CHOICES) or not all(self.choices):
            raise ArchitectureError(
                f"A search space needs at least one value for each of {', '.join(CHOICES)}, found {self.choices}."
            )

    def __len__(self) -> int:
        return prod(len(values) for values in self.choices)

    def decode(self, actions: Sequence[int], *, width: int = DEFAULT_WIDTH) -> Architecture:
        """The architecture of one choice per field.

        Args:
            actions: 12 indices, one into each field's values.
            width: Of the first stage.

        Raises:
            ArchitectureError: A choice that describes no network.
        """
        values = [choices[action] for choices, action in zip(self.choices, actions, strict=True)]
        kernels, splits, ratios = values[:4], [*values[4:7], LAST_SPLITS], values[7:11]
        assert len(kernels) == len(splits) == len(ratios) == NUM_STAGES
        return Architecture(
            patch_sizes=tuple(kernels),  # type: ignore[arg-type]
            splits=tuple(splits),  # type: ignore[arg-type]
            ffn_ratios=tuple(ratios),  # type: ignore[arg-type]
            heads=values[11],
            width=width,
        )

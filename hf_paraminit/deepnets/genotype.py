"""Genotypes: the two cells that a DeepNets-1M network repeats (arXiv 2110.13100; notation of DARTS, arXiv 1806.09055).

A cell is a small acyclic graph. States 0 and 1 are the outputs of the two cells before it; step `i` applies two
operations to two earlier states and adds the results, which gives state `2 + i`. The cell's output is the
concatenation of some states over channels.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from hf_paraminit.errors import ParamInitError

# The order is that of the columns of the sampling matrix (arXiv 2110.13100, appendix A).
OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
NUM_INPUT_STATES = 2

Connection = tuple[str, int]


class ArchitectureError(ParamInitError, ValueError):
    """A genotype or network description that no network can be built from."""


@dataclass(frozen=True)
class Genotype:
    """The normal and the reduction cell of a network.

    Sequences given as lists (the JSON form) are stored as tuples, so genotypes can be compared and hashed.

    Args:
        normal: (operation, index of its input state) pairs, two per step.
        normal_concat: states that are concatenated as the output of a normal cell.
        reduce: as `normal`, for the cells that halve the resolution.
        reduce_concat: as `normal_concat`, for the reduction cells.

    Raises:
        ArchitectureError: an unknown operation, an odd number of connections, or a state that does not exist.
    """

    normal: tuple[Connection, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Connection, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for cell in ("normal", "reduce"):
            connections = tuple(_as_connection(entry, cell) for entry in getattr(self, cell))
            concat = tuple(getattr(self, f"{cell}_concat"))
            _check_connections(connections, cell)
            _check_concat(concat, num_states=NUM_INPUT_STATES + len(connections) // 2, cell=cell)
            object.__setattr__(self, cell, connections)
            object.__setattr__(self, f"{cell}_concat", concat)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read the JSON form: the four fields, operations as two-element lists.

        Raises:
            ArchitectureError: a field is missing or unknown, or the genotype itself is invalid.
        """
        expected = {field.name for field in fields(cls)}
        if set(record) != expected:
            raise ArchitectureError(
                f"A genotype needs exactly the fields {sorted(expected)}; missing {sorted(expected - set(record))}, "
                f"unknown {sorted(set(record) - expected)}."
            )
        return cls(**record)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with lists instead of tuples."""
        record = asdict(self)
        for cell in ("normal", "reduce"):
            record[cell] = [list(connection) for connection in record[cell]]
            record[f"{cell}_concat"] = list(record[f"{cell}_concat"])
        return record

    @property
    def operations(self) -> frozenset[str]:
        """Names of all operations in either cell."""
        return frozenset(operation for operation, _ in self.normal + self.reduce)

    @property
    def has_attention(self) -> bool:
        """Whether any operation is multi-head self-attention, which makes the network a vision transformer."""
        return "msa" in self.operations

    @property
    def has_single_output_state(self) -> bool:
        """Whether both cells put out one state, so that cells do not widen their output."""
        return len(self.normal_concat) == len(self.reduce_concat) == 1

    def cell(self, *, is_reduction: bool) -> tuple[tuple[Connection, ...], tuple[int, ...]]:
        """Connections and concatenated states of one of the two cells."""
        return (self.reduce, self.reduce_concat) if is_reduction else (self.normal, self.normal_concat)

    def live_states(self, *, is_reduction: bool) -> frozenset[int]:
        """States that the output of a cell depends on, inputs included."""
        connections, concat = self.cell(is_reduction=is_reduction)
        live = set(concat)
        for step, pair in reversed(list(enumerate(_pairs(connections)))):
            if NUM_INPUT_STATES + step in live:
                live.update(state for operation, state in pair if operation != "none")
        return frozenset(live)

    def live_cells(self, num_cells: int, roots: Iterable[int]) -> frozenset[int]:
        """Cells that the outputs of the `roots` depend on; -1 and -2 stand for the stem's last and first output."""
        reductions = reduction_cells(num_cells)
        live = set(roots)
        for index in reversed(range(num_cells)):
            if index in live:
                states = self.live_states(is_reduction=index in reductions)
                live.update(index - 2 + state for state in range(NUM_INPUT_STATES) if state in states)
        return frozenset(live)

    def is_connected(self, num_cells: int) -> bool:
        """Whether the image reaches the classifier of a network of `num_cells` cells in spite of `none` operations."""
        reductions = reduction_cells(num_cells)
        before_last = last = True
        for index in range(num_cells):
            connections, concat = self.cell(is_reduction=index in reductions)
            alive = [before_last, last]
            for step in _pairs(connections):
                alive.append(any(alive[state] for operation, state in step if operation != "none"))
            before_last, last = last, any(alive[state] for state in concat)
        return last


def reduction_cells(num_cells: int) -> frozenset[int]:
    """Indices of the cells that reduce: those at one and two thirds of the depth, never the first."""
    return frozenset({num_cells // 3, 2 * num_cells // 3} - {0})


def parse_operation(name: str) -> tuple[str, int | None]:
    """Split an operation's name into its kind and kernel side.

    Two kernel parts stand for a factorised convolution, whose kind gets a "2": `conv_7x1_1x7` is `("conv2", 7)`,
    `sep_conv_5x5` is `("sep_conv", 5)`, `msa` is `("msa", None)`.

    Raises:
        ArchitectureError: the name is not one of `OPERATIONS`.
    """
    _check_operation(name)
    parts = name.split("_")
    kernels = [part for part in parts if re.fullmatch(r"\d+x\d+", part)]
    kind = "_".join(part for part in parts if part not in kernels) + ("2" if len(kernels) == 2 else "")
    sides = [int(side) for kernel in kernels for side in kernel.split("x")]
    return kind, max(sides, default=None)


def _pairs(connections: Sequence[Connection]) -> list[tuple[Connection, Connection]]:
    return list(zip(connections[::2], connections[1::2], strict=True))


def _as_connection(entry: Any, cell: str) -> Connection:
    match entry:
        case (str(operation), int(state)):
            return operation, state
    raise ArchitectureError(f"Every entry of {cell!r} must be a pair [operation, state index]; found {entry!r}.")


def _check_operation(name: str) -> None:
    if name not in OPERATIONS:
        close = difflib.get_close_matches(name, OPERATIONS)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known are {', '.join(OPERATIONS)}."
        raise ArchitectureError(f"Unknown operation {name!r} in a genotype; {hint}")


def _check_connections(connections: Sequence[Connection], cell: str) -> None:
    if not connections or len(connections) % 2:
        raise ArchitectureError(f"{cell!r} must list two connections per step; found {len(connections)} in all.")
    for position, (operation, state) in enumerate(connections):
        _check_operation(operation)
        step = position // 2
        if not 0 <= state < NUM_INPUT_STATES + step:
            raise ArchitectureError(
                f"{operation!r} at position {position} of {cell!r} belongs to step {step}, which can read states "
                f"0 to {step + 1}; found state {state}."
            )


def _check_concat(concat: Sequence[int], *, num_states: int, cell: str) -> None:
    allowed = range(NUM_INPUT_STATES, num_states)
    if not concat or len(set(concat)) != len(concat) or any(state not in allowed for state in concat):
        raise ArchitectureError(
            f"'{cell}_concat' must name distinct states from {allowed.start} to {allowed.stop - 1}, "
            f"at least one; found {list(concat)}."
        )


DARTS = Genotype.from_dict(
    {
        "normal": [
            ["sep_conv_3x3", 0],
            ["sep_conv_3x3", 1],
            ["sep_conv_3x3", 0],
            ["sep_conv_3x3", 1],
            ["sep_conv_3x3", 1],
            ["skip_connect", 0],
            ["skip_connect", 0],
            ["dil_conv_3x3", 2],
        ],
        "normal_concat": [2, 3, 4, 5],
        "reduce": [
            ["max_pool_3x3", 0],
            ["max_pool_3x3", 1],
            ["skip_connect", 2],
            ["max_pool_3x3", 1],
            ["max_pool_3x3", 0],
            ["skip_connect", 2],
            ["skip_connect", 2],
            ["max_pool_3x3", 1],
        ],
        "reduce_concat": [2, 3, 4, 5],
    }
)
"""The second-order cell of DARTS (arXiv 1806.09055, figures 4 and 5)."""

PDARTS = Genotype.from_dict(
    {
        "normal": [
            ["skip_connect", 0],
            ["dil_conv_3x3", 1],
            ["skip_connect", 0],
            ["sep_conv_3x3", 1],
            ["sep_conv_3x3", 1],
            ["sep_conv_3x3", 3],
            ["sep_conv_3x3", 0],
            ["dil_conv_5x5", 4],
        ],
        "normal_concat": [2, 3, 4, 5],
        "reduce": [
            ["avg_pool_3x3", 0],
            ["sep_conv_5x5", 1],
            ["sep_conv_3x3", 0],
            ["dil_conv_5x5", 2],
            ["max_pool_3x3", 0],
            ["dil_conv_3x3", 1],
            ["dil_conv_3x3", 1],
            ["dil_conv_5x5", 3],
        ],
        "reduce_concat": [2, 3, 4, 5],
    }
)
"""The cell of progressive DARTS (arXiv 1904.12760)."""

VIT = Genotype.from_dict(
    {
        "normal": [["none", 0], ["msa", 1]],
        "normal_concat": [2],
        "reduce": [["none", 0], ["avg_pool_3x3", 1]],
        "reduce_concat": [2],
    }
)
"""A vision transformer: one attention block per cell, average pooling (stride 1) at the reduction cells."""

NAMED_GENOTYPES: Mapping[str, Genotype] = {"DARTS": DARTS, "PDARTS": PDARTS, "ViT": VIT}

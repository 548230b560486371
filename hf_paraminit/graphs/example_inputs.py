"""What a model is called with for tracing when it takes something other than one batch of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from torch.utils._pytree import tree_map_only

from hf_paraminit.errors import TracingError


@dataclass(frozen=True, slots=True)
class ExampleInputs:
    """Arguments of one call.

    Attributes:
        positional: Arguments by position.
        named: Arguments by name.
    """

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, example_inputs: Any) -> Self:
        """Read what a user gives: a tensor, a tuple of arguments, or a mapping of keyword arguments.

        Raises:
            TracingError: When it is none of these, or holds no tensor.
        """
        if isinstance(example_inputs, Tensor):
            inputs = cls((example_inputs,))
        elif isinstance(example_inputs, tuple):
            inputs = cls(example_inputs)
        elif isinstance(example_inputs, Mapping) and all(isinstance(name, str) for name in example_inputs):
            inputs = cls(named=dict(example_inputs))
        else:
            raise TracingError(
                f"example_inputs is a {type(example_inputs).__name__}; expected a tensor, a tuple of arguments, or a "
                "dict of keyword arguments, as the model's forward pass takes them."
            )
        found: list[Tensor] = []
        inputs.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        if not found:
            raise TracingError(f"example_inputs={example_inputs!r} holds no tensor that the model could read.")
        return inputs

    def map(self, change: Callable[[Tensor], Tensor]) -> ExampleInputs:
        """Replace every tensor, also inside lists, tuples and dicts."""
        return type(self)(
            tree_map_only(Tensor, change, self.positional), tree_map_only(Tensor, change, dict(self.named or {}))
        )

    def connected(self, anchor: Tensor) -> ExampleInputs:
        """Make every tensor of floating point a result of one that requires gradients, and so visible to autograd."""
        return self.map(lambda tensor: tensor + anchor if tensor.is_floating_point() else tensor)

    def __str__(self) -> str:
        shown = self.map(lambda tensor: _Shown(f"{tuple(tensor.shape)} {tensor.dtype}"))  # type: ignore[arg-type,return-value]
        words = [*map(repr, shown.positional), *(f"{name}={value!r}" for name, value in (shown.named or {}).items())]
        return f"example_inputs ({', '.join(words)})"


class _Shown(str):
    """A text that shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

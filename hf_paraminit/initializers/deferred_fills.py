"""Building a model without drawing the random numbers that a prediction is going to overwrite.

Large random fills are written down instead of carried out, and so is further arithmetic in place on what they fill
(`trunc_normal_` scales and clamps). Every operation of the construction passes through here, so one that needs such
values finds them: they are drawn just before it. What no prediction has replaced in the end is drawn then. Thus each
tensor holds either a predicted value or one that its host's own code gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

MIN_ELEMENTS = 2**13  # drawing fewer numbers takes about as long as writing the draw down

_aten = torch.ops.aten
_RANDOM_FILLS = frozenset({_aten.normal_.default, _aten.uniform_.default})
_CONSTANT_FILLS = frozenset({_aten.zero_.default, _aten.fill_.Scalar})
_ARITHMETIC = frozenset(
    {
        _aten.erfinv_.default,
        _aten.clamp_.default,
        _aten.mul_.Tensor,
        _aten.div_.Tensor,
        _aten.add_.Tensor,
        _aten.sub_.Tensor,
    }
)
_FOLLOWING = _RANDOM_FILLS | _CONSTANT_FILLS | _ARITHMETIC
# They read the layout of a tensor and none of its elements. Views do so, too, and are known by their schema.
_LAYOUT_READERS = frozenset({_aten.empty_like.default, _aten.zeros_like.default, _aten.ones_like.default})
# They reach the memory of a tensor without an operation.
_MEMORY_READERS = frozenset(
    {
        Tensor.numpy,
        Tensor.__array__,
        Tensor.tolist,
        Tensor.data_ptr,
        Tensor.untyped_storage,
        Tensor.storage,
        Tensor.__reduce_ex__,
        Tensor.__dlpack__,
        Tensor.share_memory_,
        Tensor.__repr__,  # it turns modes off
        Tensor.__format__,
    }
)


_recording: ContextVar[DeferredFills | None] = ContextVar("hf_paraminit_deferred_fills", default=None)

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Unfilled:
    """A parameter that has no memory of its own while its fill waits.

    Attributes:
        parameter: The parameter, whose elements are all one zero in the meantime.
        calls: In-place operations that fill it, with their further arguments.
    """

    parameter: nn.Parameter
    calls: list[Call]

    @classmethod
    def release(cls, parameter: nn.Parameter, calls: list[Call]) -> Self:
        """Give the memory of a parameter back."""
        parameter.data = parameter.new_zeros(()).expand(parameter.shape)  # safe to read, unlike no memory at all
        return cls(parameter, calls)

    def allocate(self) -> None:
        """Give the parameter memory again, whose content is undefined."""
        self.parameter.data = torch.empty(
            self.parameter.shape, dtype=self.parameter.dtype, device=self.parameter.device
        )

    def fill(self) -> None:
        """Do what has waited."""
        self.allocate()
        for operation, args, kwargs in self.calls:
            operation(self.parameter, *args, **kwargs)


class DeferredFills:
    """The random fills that a construction asked for and that have not been carried out yet.

    Attributes:
        num_skipped: elements that were never drawn, since a prediction came in their place.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[Call]] = {}  # by storage, while recording; the first call fills all of it
        self._unfilled: dict[int, Unfilled] = {}  # by parameter, once `assign` has been called
        self._is_filling = False
        self.num_skipped = 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._unfilled)

    def __contains__(self, parameter: object) -> bool:
        return id(parameter) in self._unfilled

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write down what is filled in this block, in this thread; an exception has all of it carried out."""
        token = _recording.set(self)
        try:
            with _MemoryWatch(self), _OperationWatch(self):
                yield
        except BaseException:
            self.finish()
            raise
        finally:
            _recording.reset(token)

    @staticmethod
    def recording_here() -> DeferredFills | None:
        """The record that is being kept in this thread."""
        return _recording.get()

    def defer(self, fill: Callable[..., Any], tensor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Write down a random fill that consists of several operations; False when it cannot wait.

        Args:
            fill: draws all elements of a tensor.
            tensor: the tensor.
            args: further arguments of `fill`, numbers all.
            kwargs: the same by name.
        """
        with torch._C.DisableTorchFunction():  # looking at the storage here is not reading it
            if self._is_filling or not _may_wait(tensor, kwargs):
                return False
            self._waiting[_key(tensor)] = [(fill, (tensor, *args), kwargs)]
            return True

    def dispatch(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out an operation, or write it down when it can wait."""
        if self._is_filling or not args:
            return operation(*args, **kwargs)
        if operation in _RANDOM_FILLS and _may_wait(args[0], kwargs):
            self._waiting[_key(args[0])] = [(operation, args, kwargs)]
            return args[0]
        if self._waiting:
            if self._may_follow(operation, args, kwargs):
                self._waiting[_key(args[0])].append((operation, (args[0], *map(_frozen, args[1:])), kwargs))
                return args[0]
            if _overwrites(operation, args):
                self._waiting.pop(_key(args[0]), None)
            if not (operation.is_view or operation in _LAYOUT_READERS):
                self.settle((args, kwargs))
        return operation(*args, **kwargs)

    def settle(self, values: Any) -> None:
        """Carry out what waits for any tensor among the values."""
        for tensor in _tensors_in(values):
            if not _is_plain(tensor):  # it may hold waiting tensors inside, where its own dispatch finds them
                self._fill(*self._waiting)
            elif self._waiting:
                self._fill(_key(tensor))

    def assign(self, model: nn.Module) -> None:
        """Find the parameter that each waiting storage belongs to, and carry out the fills of all other storages.

        What waits after that takes no memory.
        """
        sharers: dict[int, dict[int, nn.Parameter]] = {}
        for parameter in model.parameters():
            if _is_plain(parameter):
                sharers.setdefault(_key(parameter), {})[id(parameter)] = parameter
        for key in list(self._waiting):
            owners = list(sharers.get(key, {}).values())
            if len(owners) != 1 or not self._release(key, owners[0]):
                self._fill(key)

    def adopt(self, parameter: nn.Parameter, value: Tensor) -> bool:
        """Let a parameter whose fill waits take the memory of a value, and forget the fill.

        Returns:
            False when the value must be copied: no fill waits, dtype or layout differ, or somebody else refers to the
            memory of the value.
        """
        unfilled = self._unfilled.pop(id(parameter), None)
        if unfilled is None:
            return False
        self.num_skipped += parameter.numel()
        if parameter.dtype == value.dtype and value.is_contiguous() and _owns_memory_alone(value):
            parameter.data = value.view(-1).view(value.shape)  # the strides of axes of length 1 are any that do
            return True
        unfilled.allocate()
        return False

    def finish(self) -> None:
        """Carry out all that still waits."""
        self._fill(*self._waiting)
        with torch.no_grad():
            while self._unfilled:
                self._unfilled.pop(next(iter(self._unfilled))).fill()

    def _release(self, key: int, parameter: nn.Parameter) -> bool:
        """Let a parameter wait without memory; False when it shares its own, or a part of it has a fill of its own."""
        calls = self._waiting[key]
        if not all(args[0].shape == parameter.shape and _covers_storage(args[0]) for _, args, _ in calls):
            return False
        further = [(operation, args[1:], kwargs) for operation, args, kwargs in calls]
        fillings = [args[0] for _, args, _ in calls]
        num_aliases = len({id(tensor) for tensor in fillings if tensor is not parameter})
        if not _covers_storage(parameter) or _num_tensors(parameter.untyped_storage()) != 1 + num_aliases:
            return False
        del self._waiting[key]
        self._unfilled[id(parameter)] = Unfilled.release(parameter, further)
        return True

    def _may_follow(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether this changes waiting values in place by numbers alone, some of which may be tensors."""
        return (
            operation in _FOLLOWING
            and _is_plain(args[0])
            and _key(args[0]) in self._waiting
            and not _overwrites(operation, args)
            and kwargs.get("generator") is None
            and all(
                _is_number(tensor) and _key(tensor) not in self._waiting for tensor in _tensors_in((args[1:], kwargs))
            )
        )

    def _fill(self, *keys: int) -> None:
        self._is_filling = True
        try:
            with torch.no_grad():
                for key in keys:
                    for operation, args, kwargs in self._waiting.pop(key, ()):
                        operation(*args, **kwargs)
        finally:
            self._is_filling = False


class _OperationWatch(TorchDispatchMode):
    def __init__(self, fills: DeferredFills) -> None:
        super().__init__()
        self.fills = fills

    def __torch_dispatch__(
        self, operation: Any, types: Collection[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.fills.dispatch(operation, args, kwargs or {})


class _MemoryWatch(TorchFunctionMode):
    def __init__(self, fills: DeferredFills) -> None:
        super().__init__()
        self.fills = fills

    def __torch_function__(
        self, function: Any, types: Collection[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _MEMORY_READERS:
            self.fills.settle((args, kwargs))
        return function(*args, **(kwargs or {}))


def can_defer() -> bool:
    """Whether nothing else in this thread watches tensor operations, such as a fake tensor mode."""
    return _get_current_dispatch_mode() is None and not torch.is_inference_mode_enabled()


def _may_wait(tensor: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a random fill of the tensor can wait: a large one of a whole storage that is torch's own.

    Memory from elsewhere may be read past torch, and a caller's own generator is not kept waiting.
    """
    return (
        _is_plain(tensor)
        and tensor.numel() >= MIN_ELEMENTS
        and kwargs.get("generator") is None
        and not tensor.is_meta
        and _covers_storage(tensor)
        and tensor.untyped_storage().resizable()
    )


def _overwrites(operation: Any, args: tuple[Any, ...]) -> bool:
    """Whether the first argument loses all that its storage held; a copy of a part of itself does not count."""
    if operation is _aten.copy_.default:
        is_foreign = _is_plain(args[0]) and _is_plain(args[1]) and _key(args[0]) != _key(args[1])
        return is_foreign and _covers_storage(args[0])
    return operation in _CONSTANT_FILLS and _is_plain(args[0]) and _covers_storage(args[0])


def _owns_memory_alone(tensor: Tensor) -> bool:
    """Whether no other tensor and nothing outside torch refers to the elements, all of them of this tensor."""
    storage = tensor.untyped_storage()
    # Memory that torch got from elsewhere cannot be resized.
    return _num_tensors(storage) == 1 and storage.resizable() and tensor.nbytes == storage.nbytes()


def _num_tensors(storage: torch.UntypedStorage) -> int:
    return torch._C._storage_Use_Count(storage._cdata) - 1  # the Python object that stands for it counts as well


def _covers_storage(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_number(tensor: Tensor) -> bool:
    return _is_plain(tensor) and tensor.dim() == 0 and not tensor.is_meta


def _frozen(argument: Any) -> Any:
    """The argument as it is now: a number in a tensor may change before the operation is carried out."""
    return argument.clone() if isinstance(argument, Tensor) else argument


def _is_plain(tensor: Any) -> bool:
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided


def _storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _fills_storage(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def _tensors_in(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors_in(value)
    elif isinstance(values, dict):
        yield from _tensors_in(list(values.values()))

"""A default request for models that are built by calling a class of Transformers, `ViTForImageClassification(config)`.

A model is finished when the `__init__` of its own class returns, whatever its base classes did before. So the method
of every model class is wrapped, also of classes that are defined later, and only the outermost call acts. Nothing is
wrapped before there is a default request, and nothing here imports transformers before its user does.
"""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hf_paraminit.hooks.patching import Change, HostPatch, Replacement
from hf_paraminit.hooks.transformers import MODELING, ModelRequest, parts_left_alone


class WrappedConstructors:
    """The `__init__` of a class and of all classes that are derived from it, now or later.

    Args:
        base: the class.
    """

    def __init__(self, base: type) -> None:
        self._base = base
        self._replacements: list[Replacement] = []

    def apply(self) -> None:
        announce = Replacement.of(self._base, "__init_subclass__", self._wrapping_new_class)
        self._replacements.append(announce)
        announce.apply()
        for model_class in set(_with_derived_classes(self._base)):
            self._wrap(model_class)

    def revert(self) -> None:
        for replacement in reversed(self._replacements):
            replacement.revert()
        self._replacements.clear()

    def _wrap(self, model_class: type) -> None:
        if "__init__" in vars(model_class):
            replacement = Replacement.of(model_class, "__init__", _initializing_constructor)
            self._replacements.append(replacement)
            replacement.apply()

    def _wrapping_new_class(self, original: Any) -> Any:
        announce = original.__func__

        @functools.wraps(announce)
        def announce_and_wrap(cls: type, **kwargs: Any) -> None:
            announce(cls, **kwargs)
            self._wrap(cls)

        return classmethod(announce_and_wrap)


def plan_changes(modeling: types.ModuleType) -> Sequence[Change]:
    """What to change in this release of Transformers.

    Args:
        modeling: the imported module `transformers.modeling_utils`.
    """
    model_class = getattr(modeling, "PreTrainedModel", None)
    if model_class is None or not isinstance(vars(model_class).get("__init_subclass__"), classmethod):
        return []
    return [WrappedConstructors(model_class)]


CONSTRUCTORS = HostPatch(MODELING, plan_changes)


def _with_derived_classes(base: type[Any]) -> Iterator[type]:
    yield base
    for derived in base.__subclasses__():
        yield from _with_derived_classes(derived)


def _initializing_constructor(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def build_and_initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        request = ModelRequest.from_arguments(None, None)
        if request is None:
            return original(self, *args, **kwargs)
        with parts_left_alone():
            original(self, *args, **kwargs)
            request.fulfil(self, None)

    return build_and_initialize

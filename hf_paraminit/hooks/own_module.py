"""`init=` for models that no hooked library builds: torchvision's, and classes of the user's own."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from hf_paraminit.hooks.default_request import default_request
from hf_paraminit.hooks.request import InitRequest

M = TypeVar("M", bound=nn.Module)


def build_model(
    build: Callable[..., M], *args: Any, init: Any, init_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
) -> M:
    """Call a model's class or builder, and initialize what it returns.

    The result is that of `initialize` after the call. It takes less time, since random numbers that the prediction is
    going to replace need not be drawn.

    Args:
        build: a class or function that returns a module, such as `torchvision.models.vit_b_16`.
        *args: its arguments.
        init: what `hf_paraminit.initialize` takes; None leaves the model as it was built.
        init_kwargs: settings of the initializer; also `scope` ("all" and "missing" write everything, "head" only the
            declared classifier), `distributed` (see `initialize`) and `fast` (False has all random numbers drawn).
        **kwargs: its arguments by name.

    Raises:
        UnknownInitializerError: no such initializer or variant; nothing has been built then.
        InitializerConfigError: settings it does not take.
        PredictionError: a model that cannot be written, or values that do not fit it.
    """
    request = InitRequest.from_arguments(init, init_kwargs)
    if request is None:
        return build(*args, **kwargs)
    with default_request(None):  # parts that a hooked library builds belong to the whole
        model, deferred = request.construct(lambda: build(*args, **kwargs))
        request.fulfil(model, None, type(model).__name__, deferred)
    return model

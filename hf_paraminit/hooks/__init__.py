"""Installing `init=` in the host libraries, and taking it out again. Nothing here imports a host."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from hf_paraminit.hooks.constructors import CONSTRUCTORS
from hf_paraminit.hooks.default_request import DefaultRequest, default_request, process_may_have_default
from hf_paraminit.hooks.own_models import OWN_MODELS
from hf_paraminit.hooks.timm import TIMM
from hf_paraminit.hooks.transformers import AUTO_CLASSES, TIMM_WRAPPER, TRANSFORMERS

PATCHES = (TIMM, TRANSFORMERS, AUTO_CLASSES, TIMM_WRAPPER, OWN_MODELS)


def install() -> None:
    """Give the hosts their `init=` argument, now or when they are imported; a second call changes nothing."""
    for patch in PATCHES:
        patch.install()
    if process_may_have_default():
        CONSTRUCTORS.install()


def uninstall() -> None:
    """Put the hosts' own functions back, the very same objects; a second call changes nothing."""
    for patch in (*PATCHES, CONSTRUCTORS):
        patch.uninstall()


@contextmanager
def patched() -> Iterator[None]:
    """Give the hosts their `init=` argument for one block; what was installed before stays so after it."""
    with ExitStack() as stack:
        for patch in PATCHES:
            stack.enter_context(patch.scoped())
        yield


@contextmanager
def default_init(
    init: Any, init_kwargs: Mapping[str, Any] | None = None, *, scope: str | None = None
) -> Iterator[None]:
    """Initialize the models that are built in this block without `init=`; works whether or not the hooks are installed.

    Covers `timm.create_model`, `from_config` and `from_pretrained` of Transformers, and direct calls of a Transformers
    class, `ViTForImageClassification(config)`. Of a model with parts only the whole counts. A model that is built with
    an `init=` of its own gets that. Blocks nest, and count for their own thread or task only.

    Args:
        init: what `hf_paraminit.initialize` takes; None leaves the block's models to their library, also inside another
            block and under `paraminit run`.
        init_kwargs: settings of the initializer.
        scope: "missing" (the default) writes what a checkpoint did not provide, "all" everything, "head" of the missing
            only the classifier; "first" is "missing" for the first model of the block and nothing for later ones.

    Raises:
        UnknownInitializerError: no such initializer or variant.
        InitializerConfigError: settings it does not take, or another scope.
    """
    default = None if init is None else DefaultRequest(init, init_kwargs, scope)
    with patched(), CONSTRUCTORS.scoped(), default_request(default):
        yield


def is_disabled() -> bool:
    """Whether the environment variable HF_PARAMINIT_DISABLE asks to leave the hosts alone."""
    return os.environ.get("HF_PARAMINIT_DISABLE", "").lower() not in ("", "0", "false", "no")


def install_on_import() -> None:
    """`install()`, unless the environment variable HF_PARAMINIT_DISABLE says otherwise."""
    if not is_disabled():
        install()

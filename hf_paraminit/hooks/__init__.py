"""Installing `init=` in the host libraries, and taking it out again. Nothing here imports a host."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hf_paraminit.hooks.timm import TIMM
from hf_paraminit.hooks.transformers import AUTO_CLASSES, TIMM_WRAPPER, TRANSFORMERS

PATCHES = (TIMM, TRANSFORMERS, AUTO_CLASSES, TIMM_WRAPPER)


def install() -> None:
    """Give the hosts their `init=` argument, now or when they are imported; a second call changes nothing."""
    for patch in PATCHES:
        patch.install()


def uninstall() -> None:
    """Put the hosts' own functions back, the very same objects; a second call changes nothing."""
    for patch in PATCHES:
        patch.uninstall()


@contextmanager
def patched() -> Iterator[None]:
    """Give the hosts their `init=` argument for one block; what was installed before stays so after it."""
    with ExitStack() as stack:
        for patch in PATCHES:
            stack.enter_context(patch.scoped())
        yield


def install_on_import() -> None:
    """`install()`, unless the environment variable HF_PARAMINIT_DISABLE says otherwise."""
    if os.environ.get("HF_PARAMINIT_DISABLE", "").lower() in ("", "0", "false", "no"):
        install()

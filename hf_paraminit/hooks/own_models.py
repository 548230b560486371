"""Our own architectures under their names in timm, as soon as timm is imported and never earlier."""

import importlib
import types
from collections.abc import Sequence

from hf_paraminit.hooks.patching import Change, HostPatch

# By name, since importing them imports timm.
MODULES = ("hf_paraminit.asvit.model",)


class Registration:
    """Importing a module of models registers them. timm has no way to forget a name, so there is nothing to undo."""

    def apply(self) -> None:
        for module in MODULES:
            importlib.import_module(module)

    def revert(self) -> None:
        pass


def _registration(models: types.ModuleType) -> Sequence[Change]:
    return (Registration(),)


OWN_MODELS = HostPatch("timm.models", _registration)

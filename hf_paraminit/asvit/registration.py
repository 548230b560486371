"""As-ViT models under their names in timm, as soon as timm is imported and never earlier."""

import importlib
import types
from collections.abc import Sequence

from hf_paraminit.hooks import is_disabled
from hf_paraminit.hooks.patching import Change, HostPatch

MODEL = "hf_paraminit.asvit.model"


class Registration:
    """Importing the model's file registers it. timm has no way to forget a name, so there is nothing to undo."""

    def apply(self) -> None:
        importlib.import_module(MODEL)

    def revert(self) -> None:
        pass


def _registration(models: types.ModuleType) -> Sequence[Change]:
    return (Registration(),)


ASVIT = HostPatch("timm.models", _registration)


def register_on_import() -> None:
    """Register the models, unless HF_PARAMINIT_DISABLE asks to leave the hosts alone; a second call changes nothing."""
    if not is_disabled():
        ASVIT.install()

"""Learned initial weights for any timm or Hugging Face vision model, with one keyword.

    import timm, hf_paraminit
    model = timm.create_model("resnet50", init="ghn3")

Importing the package adds the `init=` argument to timm and Transformers (HF_PARAMINIT_DISABLE=1 keeps it out). It loads
no host library and no predictor, draws no random numbers and uses no network; names below are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_paraminit.asvit.complexity import complexity as complexity
    from hf_paraminit.asvit.ntk import ntk_condition as ntk_condition
    from hf_paraminit.errors import (
        CheckpointError as CheckpointError,
        DuplicateInitializerError as DuplicateInitializerError,
        InitializerConfigError as InitializerConfigError,
        MissingDependencyError as MissingDependencyError,
        OutputError as OutputError,
        ParamInitError as ParamInitError,
        PredictionError as PredictionError,
        PredictorNotFoundError as PredictorNotFoundError,
        TracingError as TracingError,
        TrainingConfigError as TrainingConfigError,
        UnknownInitializerError as UnknownInitializerError,
        UnsafeFileError as UnsafeFileError,
    )
    from hf_paraminit.evaluation.batchnorm import recalibrate_batchnorm as recalibrate_batchnorm
    from hf_paraminit.evaluation.comparison import Comparison as Comparison, compare_inits as compare_inits
    from hf_paraminit.evaluation.explain import explain as explain
    from hf_paraminit.evaluation.explanation import Explanation as Explanation
    from hf_paraminit.evaluation.small_images import adapt_to_small_images as adapt_to_small_images
    from hf_paraminit.ghn.config import GHNConfig as GHNConfig
    from hf_paraminit.ghn.model import GHN as GHN
    from hf_paraminit.graphs.graph import ComputationalGraph as ComputationalGraph, Node as Node
    from hf_paraminit.graphs.trace import trace as trace
    from hf_paraminit.hooks import (
        default_init as default_init,
        install as install,
        patched as patched,
        uninstall as uninstall,
    )
    from hf_paraminit.hooks.own_module import build_model as build_model
    from hf_paraminit.hooks.timm import create_model as create_model
    from hf_paraminit.hooks.transformers import from_config as from_config, from_pretrained as from_pretrained
    from hf_paraminit.initializers.base import Initializer as Initializer, InitializerConfig as InitializerConfig
    from hf_paraminit.initializers.initialize import initialize as initialize
    from hf_paraminit.initializers.predictor import clear_cache as clear_cache, load_predictor as load_predictor
    from hf_paraminit.initializers.registry import (
        initializer_info as initializer_info,
        list_initializers as list_initializers,
        register_initializer as register_initializer,
    )
    from hf_paraminit.initializers.report import InitReport as InitReport
    from hf_paraminit.lets.config import LeTsConfig as LeTsConfig
    from hf_paraminit.lets.generator import LeTsGenerator as LeTsGenerator

# Public names by the module that defines them. A test compares the list with the imports above and with a stored copy.
_HOMES = {
    "asvit.complexity": ("complexity",),
    "asvit.ntk": ("ntk_condition",),
    "errors": (
        "CheckpointError",
        "DuplicateInitializerError",
        "InitializerConfigError",
        "MissingDependencyError",
        "OutputError",
        "ParamInitError",
        "PredictionError",
        "PredictorNotFoundError",
        "TracingError",
        "TrainingConfigError",
        "UnknownInitializerError",
        "UnsafeFileError",
    ),
    "evaluation.batchnorm": ("recalibrate_batchnorm",),
    "evaluation.comparison": ("Comparison", "compare_inits"),
    "evaluation.explain": ("explain",),
    "evaluation.explanation": ("Explanation",),
    "evaluation.small_images": ("adapt_to_small_images",),
    "ghn.config": ("GHNConfig",),
    "ghn.model": ("GHN",),
    "graphs.graph": ("ComputationalGraph", "Node"),
    "graphs.trace": ("trace",),
    "hooks": ("default_init", "install", "patched", "uninstall"),
    "hooks.own_module": ("build_model",),
    "hooks.timm": ("create_model",),
    "hooks.transformers": ("from_config", "from_pretrained"),
    "initializers.base": ("Initializer", "InitializerConfig"),
    "initializers.initialize": ("initialize",),
    "initializers.predictor": ("clear_cache", "load_predictor"),
    "initializers.registry": ("initializer_info", "list_initializers", "register_initializer"),
    "initializers.report": ("InitReport",),
    "lets.config": ("LeTsConfig",),
    "lets.generator": ("LeTsGenerator",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


from hf_paraminit.hooks import install_on_import  # noqa: E402 (needs __version__ and errors first)

install_on_import()

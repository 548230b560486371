"""The models whose coverage is measured: all of timm, and Transformers' image models from their default configs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import timm
import torch
from torch import nn

from hf_paraminit.errors import ParamInitError
from hf_paraminit.evaluation.coverage import Built, Candidate
from hf_paraminit.initializers.suggest import did_you_mean

SOURCES = ("timm", "transformers")
_TIMM_HEAD = "timm's own"
# Head -> table of Transformers that lists the models which have it.
_TABLES = {
    "backbone": "MODEL_FOR_BACKBONE_MAPPING_NAMES",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "masked-image": "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES",
}


def find_candidates(patterns: Sequence[str], sources: Sequence[str]) -> list[Candidate]:
    """List the models that match a pattern, each once.

    Args:
        patterns: With the wildcards of `fnmatch`; case does not count. Models of Transformers go by the name of their
            class and by that of their model type.
        sources: Among `SOURCES`.

    Raises:
        ParamInitError: A pattern matches nothing.
    """
    names = {candidate: spellings for source in sources for candidate, spellings in _LISTS[source]()}
    found: dict[Candidate, None] = {}
    for pattern in patterns:
        matches = [candidate for candidate, spellings in names.items() if _is_match(spellings, pattern)]
        if not matches:
            known = [spelling for spellings in names.values() for spelling in spellings]
            raise ParamInitError(
                f"No model of {' and '.join(sources)} matches {pattern!r}.{did_you_mean(pattern, known)} Write a whole "
                "name or wildcards, as 'resnet*', in quotes; --source chooses where to look."
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def build(candidate: Candidate) -> Built:
    """Build a model with timm's or Transformers' defaults, on the meta device where its constructor allows that."""
    construct, example_inputs = _CONSTRUCTORS[candidate.source](candidate)
    try:
        with torch.device("meta"):
            return Built(module=construct(), example_inputs=example_inputs)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # a constructor that reads tensors
        return Built(module=construct(), example_inputs=example_inputs)


def _is_match(spellings: tuple[str, ...], pattern: str) -> bool:
    return any(fnmatchcase(spelling.lower(), pattern.lower()) for spelling in spellings)


# --- timm ------------------------------------------------------------------------------------------------------------


def _list_timm() -> Iterator[tuple[Candidate, tuple[str, ...]]]:
    for name in timm.list_models():
        yield Candidate(model=name, source="timm", head=_TIMM_HEAD), (name,)


def _timm_constructor(candidate: Candidate) -> tuple[Callable[[], nn.Module], Any]:
    return functools.partial(timm.create_model, candidate.model), None


# --- Transformers ----------------------------------------------------------------------------------------------------


def _list_transformers() -> Iterator[tuple[Candidate, tuple[str, ...]]]:
    for (class_name, head), model_type in _transformers_types().items():
        yield Candidate(model=class_name, source="transformers", head=head), (class_name, model_type)


@functools.cache
def _transformers_types() -> dict[tuple[str, str], str]:
    """(Class, head) -> model type; of two types of one class the first."""
    from transformers.models.auto import modeling_auto

    types: dict[tuple[str, str], str] = {}
    for head, table in _TABLES.items():
        for model_type, classes in getattr(modeling_auto, table).items():
            for class_name in (classes,) if isinstance(classes, str) else classes:
                types.setdefault((class_name, head), model_type)
    return types


def _transformers_constructor(candidate: Candidate) -> tuple[Callable[[], nn.Module], Any]:
    import transformers
    from transformers.models.auto import CONFIG_MAPPING

    settings: Any = _SETTINGS.get(candidate.model, {})
    config_class = CONFIG_MAPPING[_transformers_types()[candidate.model, candidate.head]]
    if callable(settings):
        with _errors_only(transformers.logging):
            settings = settings(config_class())
    inputs = _EXAMPLE_INPUTS.get(candidate.model, lambda: None)()

    def build() -> nn.Module:
        with _errors_only(transformers.logging):  # defaults of configs warn about each other
            return getattr(transformers, candidate.model)(config_class(**settings))

    return build, inputs


@contextmanager
def _errors_only(logging: Any) -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


# What a config needs beside its defaults: some defaults do not build a model of the class.
_SETTINGS: dict[str, Any] = {
    # as published: the width of the positions' code must suit the number of heads
    "PerceiverForImageClassificationFourier": {"d_model": 261, "num_cross_attention_heads": 1},
    "PerceiverForImageClassificationConvProcessing": {"d_model": 322, "num_cross_attention_heads": 1},
    # by default a tuple, which the backbones cannot add to a list
    "ConvNextBackbone": lambda config: {"hidden_sizes": list(config.hidden_sizes)},
    "ConvNextV2Backbone": lambda config: {"hidden_sizes": list(config.hidden_sizes)},
    "FocalNetBackbone": lambda config: {"hidden_sizes": list(config.hidden_sizes)},
    "TimmBackbone": {"backbone": "resnet50", "use_pretrained_backbone": False},
    # by default the feature maps of the last stage alone, which most of the bridge does not lead to
    "UVDocBackbone": lambda config: {"out_features": config.stage_names},
    # by default 2.7 billion parameters; without the pooling head, as published
    "ShieldGemma2ForImageClassification": {
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 1024,
        },
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 224,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 16,
        "image_token_index": 1000,
        "yes_token_index": 10,
        "no_token_index": 11,
    },
}


def _color_clusters() -> dict[str, torch.Tensor]:
    """ImageGPT reads the 32 x 32 pixels as numbers of colours."""
    return {"input_ids": torch.zeros(2, 32 * 32, dtype=torch.int64)}


def _flat_patches() -> dict[str, torch.Tensor]:
    """SigLIP 2 reads flattened 16 x 16 patches of images of any shape: here 16 rows of 16."""
    return {
        "pixel_values": torch.zeros(2, 256, 3 * 16 * 16),
        "pixel_attention_mask": torch.ones(2, 256, dtype=torch.int32),
        "spatial_shapes": torch.full((2, 2), 16),
    }


def _prompt_with_image() -> dict[str, torch.Tensor]:
    """ShieldGemma 2 reads a prompt in which 16 tokens (number 1000 in the config above) stand for the image."""
    tokens = torch.full((2, 24), 5)
    tokens[:, 2:18] = 1000
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": (tokens == 1000).long(),
        "pixel_values": torch.zeros(2, 3, 224, 224),
    }


_EXAMPLE_INPUTS: dict[str, Callable[[], Any]] = {
    "ImageGPTForImageClassification": _color_clusters,
    "Siglip2ForImageClassification": _flat_patches,
    "ShieldGemma2ForImageClassification": _prompt_with_image,
}

_LISTS = {"timm": _list_timm, "transformers": _list_transformers}
_CONSTRUCTORS = {"timm": _timm_constructor, "transformers": _transformers_constructor}

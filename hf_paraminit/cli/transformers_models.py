"""Building the Transformers model that a configuration describes, and writing it to a folder."""

import argparse
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from hf_paraminit.cli.timm_models import host_errors
from hf_paraminit.errors import ParamInitError
from hf_paraminit.hooks.transformers import from_config
from hf_paraminit.initializers.suggest import did_you_mean
from hf_paraminit.io.atomic import atomic_folder

AUTO_CLASS = "AutoModelFor"
LOCAL_MARKS = ("/", ".", "~")  # no id of a repository starts with these
# Names of `add_model_arguments` -> those that vision configs share.
CONFIG_NAMES = {"num_classes": "num_labels", "in_chans": "num_channels", "img_size": "image_size"}


def auto_class_name(task: str) -> str:
    """`AutoModelForImageClassification` for "image-classification".

    Raises:
        ParamInitError: Transformers has no Auto class for the task.
    """
    auto_classes = [name for name in dir(transformers) if name.startswith(AUTO_CLASS)]
    known = {_spelling(name.removeprefix(AUTO_CLASS)): name for name in auto_classes}
    if _spelling(task) not in known:
        tasks = [_hyphenated(name.removeprefix(AUTO_CLASS)) for name in auto_classes]
        raise ParamInitError(
            f"Transformers {transformers.__version__} has no Auto class for --task {task!r}."
            f"{did_you_mean(task, tasks)} An example is image-classification."
        )
    return known[_spelling(task)]


def load_config(source: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """Read a configuration and change some of its values; no code in or beside it is executed.

    Args:
        source: config.json, the folder with it, or the id of a repository on the Hub.
        settings: values to change, by the configuration's own names.

    Raises:
        ParamInitError: no such configuration, or it does not have one of the settings.
    """
    if source.startswith(LOCAL_MARKS) or source.endswith(".json"):
        source = str(Path(source).expanduser())
        if not Path(source).exists():
            raise ParamInitError(f"There is no configuration {source!r}; name a config.json or the folder with it.")
    with host_errors(f"Transformers could not read the configuration {source!r}", OSError, ImportError):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    for name in settings:
        if not hasattr(config, name):
            raise ParamInitError(
                f"The configuration {source!r} of {config.model_type!r} has no value {name!r}."
                f"{did_you_mean(name, config.to_dict())}"
            )
    with host_errors(f"The configuration {source!r} cannot have {settings}"):
        config.update(settings)
    return config


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_model_arguments` change in a configuration."""
    sizes = {own: getattr(arguments, name) for name, own in CONFIG_NAMES.items()}
    return {**arguments.model_kwargs, **{name: value for name, value in sizes.items() if value is not None}}


def build_from_config(config: PreTrainedConfig, class_name: str, **init: Any) -> nn.Module:
    """Build the model.

    Args:
        config: its configuration.
        class_name: an Auto class.
        **init: `init` and `init_kwargs`.

    Raises:
        ParamInitError: Transformers has no such model, or cannot build it from these values.
    """
    with host_errors(f"Transformers could not build {class_name} from a {type(config).__name__}", ImportError):
        return from_config(getattr(transformers, class_name), config, **init)


def save_for_transformers(model: Any, folder: Path, source: str) -> None:
    """Write a folder that `from_pretrained` opens, with the image processor that belongs to the source, if any.

    Raises:
        OutputError: the folder could not be written; it is as before.
    """
    place = Path(source)
    processor = _image_processor(str(place.parent) if place.is_file() else source)
    with atomic_folder(folder) as staging, host_errors("Transformers could not save this model"):
        model.save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)


def _image_processor(source: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError):  # not there, of an unknown kind, or its image library is missing
        return None


def _spelling(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _hyphenated(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")

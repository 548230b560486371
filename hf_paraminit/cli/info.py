"""Show what is known about one initializer: its settings, its predictors and their measured results."""

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hf_paraminit.cli.arguments import Subparsers, add_json_switch, verb_parser
from hf_paraminit.cli.table import table
from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.initializers.base import Initializer, InitializerConfig
from hf_paraminit.initializers.registry import config_class, create, initializer_info
from hf_paraminit.io.pretrained import CONFIG_FILE, WEIGHTS_FILE, read_predictor_config

EXAMPLES = """
paraminit info ghn3
paraminit info ghn3 --json
"""

_ATTRIBUTES_SECTION = re.compile(r"^Attributes:\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_ATTRIBUTE = re.compile(r"^    (\w+): (.*?)(?=^    \w|\Z)", re.MULTILINE | re.DOTALL)


def add_parser(subparsers: Subparsers) -> None:
    parser = verb_parser(subparsers, "info", __doc__, examples=EXAMPLES)
    parser.add_argument("name", metavar="NAME", help="a registered initializer; `paraminit list` shows them")
    add_json_switch(parser)


def run(arguments: argparse.Namespace) -> None:
    record = describe(arguments.name)
    print(json.dumps(record, indent=2) if arguments.json else _as_text(record))


def describe(name: str) -> dict[str, Any]:
    """Everything there is to say about a registered initializer, as JSON values.

    Raises:
        UnknownInitializerError: no such name or variant.
    """
    card = initializer_info(name)
    record = dataclasses.asdict(card)
    try:
        initializer = create(card.name)
    except InitializerConfigError as error:  # it has settings without a default
        settings = describe_settings(config_class(card.name))
        return {**record, "settings": settings, "predictors": {}, "note": str(error)}
    return {**record, "settings": describe_settings(initializer.config), "predictors": _predictors(initializer)}


def describe_settings(config: InitializerConfig | type[InitializerConfig]) -> list[dict[str, Any]]:
    """Name, type, value and meaning of each setting of an initializer that was made without any, or of its class."""
    meanings = _meanings(config if isinstance(config, type) else type(config))
    return [
        {
            "name": field.name,
            "type": field.type if isinstance(field.type, str) else inspect.formatannotation(field.type),
            "default": _default(field, config),
            "meaning": meanings.get(field.name, ""),
        }
        for field in dataclasses.fields(config)
    ]


def _default(field: dataclasses.Field[Any], config: InitializerConfig | type[InitializerConfig]) -> Any:
    if not isinstance(config, type):
        return getattr(config, field.name)
    return None if field.default is dataclasses.MISSING else field.default


def _meanings(config_class: type) -> dict[str, str]:
    """Field -> its entry in the "Attributes" section of the class's docstring, or of a base class's."""
    meanings: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        section = _ATTRIBUTES_SECTION.search(inspect.cleandoc(base.__doc__ or "") + "\n")
        if section:
            meanings |= {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(section[1])}
    return meanings


def _predictors(initializer: Initializer) -> dict[str, dict[str, Any]]:
    """Variant -> where its trained weights are, for methods that have some."""
    files = getattr(initializer, "files", {})
    return {variant: _describe_file(files.get(variant)) for variant in initializer.variants}


def _describe_file(file: Any) -> dict[str, Any]:
    if file is None:
        return {"location": "not published; read a copy with init_kwargs={'source': PATH}"}
    if file.folder is None:
        return {"location": f"https://huggingface.co/{file.repository}", "filename": file.filename}
    weights = file.folder / WEIGHTS_FILE
    if not weights.is_file():
        return {"location": "not in this installation"}
    predictor = read_predictor_config(file.folder / CONFIG_FILE)
    return {
        "location": "in the package",
        "bytes": weights.stat().st_size,
        "config": predictor["config"],
        "metadata": predictor.get("metadata", {}),
    }


def _as_text(record: Mapping[str, Any]) -> str:
    return "\n\n".join(_sections(record))


def _sections(record: Mapping[str, Any]) -> Iterator[str]:
    facts = {
        "summary": record["summary"],
        "paper": f"https://arxiv.org/abs/{record['paper']}" if record["paper"] else None,
        "aliases": ", ".join(record["aliases"]),
        "variants": ", ".join(record["variants"]),
        "module": record["module"],
        "note": record.get("note"),
    }
    yield "\n".join([record["name"], *(f"  {name:<9} {value}" for name, value in facts.items() if value)])
    if record["settings"]:
        rows = [(item["name"], json.dumps(item["default"]), item["meaning"]) for item in record["settings"]]
        yield "Settings (init_kwargs)\n" + table(("NAME", "DEFAULT", "MEANING"), rows)
    if record["predictors"]:
        places = [(variant, _place(predictor)) for variant, predictor in record["predictors"].items()]
        yield "Predictors\n" + table(("VARIANT", "PLACE"), places)
    for variant, predictor in record["predictors"].items():
        if predictor.get("metadata"):
            yield f"About {variant}\n" + "\n".join(_flattened(predictor["metadata"], indent=2))


def _place(predictor: Mapping[str, Any]) -> str:
    parts = [predictor["location"], predictor.get("filename")]
    parts.append(f"{predictor['bytes'] / 1e6:.1f} MB" if "bytes" in predictor else None)
    return ", ".join(part for part in parts if part)


def _flattened(values: Mapping[str, Any], indent: int) -> Iterator[str]:
    """Nested JSON values as indented lines."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield f"{' ' * indent}{name}:"
            yield from _flattened(value, indent + 2)
        else:
            yield f"{' ' * indent}{name}: {value if isinstance(value, str) else json.dumps(value)}"

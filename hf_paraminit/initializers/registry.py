"""Names of initializers: how a method announces itself, and how a value of `init=` becomes an object.

A built-in name is the file of that name in this package; it is imported on first use. Other packages announce theirs
with the entry-point group `hf_paraminit.initializers`, or call `register_initializer` themselves. There is no list to
keep in step.
"""

import dataclasses
import fnmatch
import functools
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import hf_paraminit.initializers as built_in_package
from hf_paraminit.errors import DuplicateInitializerError, InitializerConfigError, UnknownInitializerError
from hf_paraminit.initializers.base import (
    FunctionInitializer,
    Initializer,
    InitializerConfig,
    match_variant,
    spelling_key,
)
from hf_paraminit.initializers.composition import Composition, Rule
from hf_paraminit.initializers.suggest import did_you_mean

ENTRY_POINT_GROUP = "hf_paraminit.initializers"
PREDICTOR = "predictor"  # the initializer that runs a predictor from a repository or folder
SOURCES = ("hf-hub", "local-dir")
SHARED_SETTINGS = ("seed", "device")  # of the parts of a composition

R = TypeVar("R", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PREFIX = re.compile(r"[A-Za-z][\w.-]+:")  # longer than the drive letter of a Windows path
_PATH_MARKS = ("/", "\\", "~")


@dataclass(frozen=True, kw_only=True, slots=True)
class InitializerCard:
    """What is known about a registered initializer without building it.

    Attributes:
        name: as registered.
        summary: one clause.
        paper: arXiv id, if there is a paper.
        aliases: other names that find it.
        variants: presets, for `name:variant`.
        module: where it is defined.
        settings: what `init_kwargs` may hold; `paraminit info NAME` explains each.
    """

    name: str
    summary: str
    paper: str | None
    aliases: tuple[str, ...]
    variants: tuple[str, ...]
    module: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    card: InitializerCard
    registered: Callable[..., Any]
    listed: bool

    def build(self, **settings: Any) -> Initializer:
        if isinstance(self.registered, type):
            return self.registered(**settings)
        return FunctionInitializer(self.registered, self.card.name, **settings)


_entries: dict[str, _Entry] = {}  # by spelling key of the name
_lock = threading.Lock()


def register_initializer(
    name: str, *, summary: str = "", paper: str | None = None, aliases: tuple[str, ...] = (), listed: bool = True
) -> Callable[[R], R]:
    """Decorator that makes an `Initializer` subclass, or a function `f(model, names, **settings)`, available by name.

    Args:
        name: letters, digits, `-`, `_` and `.`; found in any case, with `-` and `_` equal.
        summary: one clause for listings; the first line of the docstring by default.
        paper: arXiv id.
        aliases: further names.
        listed: False hides the name from `list_initializers`.

    Raises:
        DuplicateInitializerError: the name or an alias is taken by something else. Running the same definition again,
            as a module reload or a notebook cell does, replaces it.
        InitializerConfigError: a name that could not be written as `init=`.
    """
    for spelling in (name, *aliases):
        if not _NAME.fullmatch(spelling) or spelling_key(spelling) in SOURCES:
            raise InitializerConfigError(
                f"{spelling!r} cannot be an initializer's name; use letters, digits, '-', '_' and '.', and none of "
                f"{', '.join(SOURCES)}."
            )

    def register(registered: R) -> R:
        doc_line = (registered.__doc__ or "").strip().partition("\n")[0]
        card = InitializerCard(
            name=name,
            summary=summary or doc_line,
            paper=paper,
            aliases=tuple(aliases),
            variants=tuple(getattr(registered, "variants", ())),
            module=registered.__module__,
            settings=_settings_of(registered),
        )
        if not registered.__module__.startswith(f"{built_in_package.__name__}."):
            _load_built_ins()  # so that a clash with a built-in name shows here, not when that one is first used
        with _lock:
            _refuse_taken_names(card, registered)
            _entries[spelling_key(name)] = _Entry(card=card, registered=registered, listed=listed)
        if isinstance(registered, type) and issubclass(registered, Initializer):
            registered.name = name
        return registered

    return register


def list_initializers(pattern: str | None = None) -> list[str]:
    """Names that `init=` accepts, sorted; with a shell-style pattern such as `"ghn*"`, those that match."""
    _load_built_ins()
    names = {key: entry.card.name for key, entry in _entries.items()}
    for point in _entry_points():
        names.setdefault(spelling_key(point.name), point.name)
    hidden = {key for key, entry in _entries.items() if not entry.listed}
    wanted = "*" if pattern is None else spelling_key(pattern)
    return [names[key] for key in sorted(names) if key not in hidden and fnmatch.fnmatchcase(key, wanted)]


def initializer_info(name: str) -> InitializerCard:
    """The card of a registered initializer; a variant after `:` is checked and does not change the card.

    Raises:
        UnknownInitializerError: no such name or variant; the message suggests the nearest.
    """
    base_name, separator, variant = name.partition(":")
    card = _find(base_name).card
    if separator:
        match_variant(card.name, variant, card.variants)
    return card


def config_class(name: str) -> type[InitializerConfig]:
    """The class of a registered initializer's settings, for describing them without building it.

    Raises:
        UnknownInitializerError: no such name.
    """
    return getattr(_find(name).registered, "Config", InitializerConfig)


def create(init: Any, /, **init_kwargs: Any) -> Initializer:
    """Turn any value of `init=` into an `Initializer`, without network and without touching a model.

    Args:
        init: a name, `name:variant`, `hf-hub:org/repo[@revision]`, `local-dir:PATH`, an `Initializer` object or
            subclass, or a function `f(model, names, **settings)`. A dict of name patterns and any of these composes
            them, the first matching pattern first; a dict with the key `init` holds further settings beside it. Both
            may be written as JSON text.
        **init_kwargs: its settings; on an object they make a copy with these settings changed.

    Raises:
        UnknownInitializerError: no such name or variant, or a value that is none of the above.
        InitializerConfigError: settings that the initializer does not take.
    """
    if isinstance(init, str):
        return _create_from_text(init, init_kwargs)
    if isinstance(init, Initializer):
        return init.with_config(**init_kwargs) if init_kwargs else init
    if isinstance(init, type) and issubclass(init, Initializer):
        return init(**init_kwargs)
    if isinstance(init, Mapping):
        return _create_from_mapping(init, init_kwargs)
    if callable(init):
        return FunctionInitializer(init, **init_kwargs)
    raise UnknownInitializerError(
        f"init must be a name, an Initializer, a dict of name patterns or a function f(model, names, **kwargs), not a "
        f"{type(init).__name__}."
    )


def _create_from_mapping(init: Mapping[Any, Any], settings: dict[str, Any]) -> Initializer:
    if "init" in init:
        own = {key: value for key, value in init.items() if key != "init"}
        return create(init["init"], **{**settings, **own})
    unshared = [key for key in settings if key not in SHARED_SETTINGS]
    if unshared:
        raise InitializerConfigError(
            f"The rules of init={dict(init)!r} share {' and '.join(SHARED_SETTINGS)} only, not {unshared[0]!r}. "
            f"Settings of one rule stand beside its name, as in {{'*': {{'init': 'ghn3', {unshared[0]!r}: ...}}}}."
        )
    rules = []
    for pattern, part in init.items():
        if not isinstance(pattern, str):
            raise InitializerConfigError(f"A rule needs a pattern of parameter names, found {pattern!r}.")
        # a copy, since an initializer remembers what it did last
        rules.append(Rule(pattern, create("default" if part is None else part, **settings).with_config()))
    return Composition(rules, **settings)


def _create_from_text(text: str, settings: dict[str, Any]) -> Initializer:
    if text.lstrip().startswith("{"):
        return _create_from_mapping(_parsed_rules(text), settings)
    prefix, separator, rest = text.strip().partition(":")
    if separator and spelling_key(prefix) in SOURCES:
        source = _checked_source(spelling_key(prefix), rest)
        return _find(PREDICTOR).build(**{**settings, "source": source})
    _refuse_bare_locations(text)
    entry = _find(prefix)
    if separator:
        variant = match_variant(entry.card.name, rest, entry.card.variants)
        chosen = settings.setdefault("variant", variant)
        if match_variant(entry.card.name, chosen, entry.card.variants) != variant:
            raise InitializerConfigError(f"init={text!r} and init_kwargs['variant']={chosen!r} contradict each other.")
    return entry.build(**settings)


def _parsed_rules(text: str) -> dict[str, Any]:
    try:
        rules: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnknownInitializerError(
            f'init={text!r} is not valid JSON: {error}. Write rules as \'{{"*.attn.*": "mimetic", "*": "default"}}\'.'
        ) from error
    return rules


def _checked_source(kind: str, location: str) -> str:
    if kind == "hf-hub" and not _REPOSITORY.fullmatch(location):
        raise UnknownInitializerError(
            f"'hf-hub:{location}' does not name a Hub repository; write hf-hub:organisation/repository or "
            "hf-hub:organisation/repository@revision."
        )
    if not location.strip():
        raise UnknownInitializerError(f"'{kind}:' needs a folder, as in local-dir:/path/to/predictor.")
    return f"{kind}:{location}"


def _refuse_bare_locations(text: str) -> None:
    if any(mark in text for mark in _PATH_MARKS):
        location = _PREFIX.sub("", text)
        raise UnknownInitializerError(
            f"init={text!r} looks like a path or a Hub repository. Write 'hf-hub:{location}' to download a predictor "
            f"from the Hub, or 'local-dir:{location}' to read one from a folder."
        )


def _find(name: str) -> _Entry:
    """The entry for a name or alias, imported if need be: built-in file, built-in alias, then other packages."""
    key = spelling_key(name)
    for load in (lambda: None, functools.partial(_load_built_in, key), _load_built_ins, lambda: _load_entry_point(key)):
        load()
        entry = _entries.get(key) or _entry_of_alias(key)
        if entry is not None:
            return entry
    known = list_initializers()
    aliases = [alias for entry in _entries.values() if entry.listed for alias in entry.card.aliases]
    raise UnknownInitializerError(
        f"There is no initializer {name!r}.{did_you_mean(key, [*known, *aliases])} Known: {', '.join(known) or 'none'}."
    )


def _entry_of_alias(key: str) -> _Entry | None:
    for entry in list(_entries.values()):
        if key in map(spelling_key, entry.card.aliases):
            return entry
    return None


def _refuse_taken_names(card: InitializerCard, registered: Callable[..., Any]) -> None:
    for spelling in (card.name, *card.aliases):
        key = spelling_key(spelling)
        taken = _entries.get(key) or _entry_of_alias(key)
        if taken is not None and not _is_same_definition(taken.registered, registered):
            raise DuplicateInitializerError(
                f"{card.module} registers {spelling!r}, which {taken.card.module} already registered as "
                f"{taken.card.name!r}; choose another name."
            )


def _settings_of(registered: Callable[..., Any]) -> tuple[str, ...]:
    """Fields of a class's `Config`; arguments of a function after the model and the names, and what all have."""
    if isinstance(registered, type):
        return tuple(field.name for field in dataclasses.fields(getattr(registered, "Config", InitializerConfig)))
    shared = [field.name for field in dataclasses.fields(InitializerConfig)]
    try:
        parameters = list(inspect.signature(registered).parameters.values())[2:]
    except ValueError:  # some functions written in C have no signature
        parameters = []
    own = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in shared]
    return (*shared, *own)


def _is_same_definition(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _built_in_modules() -> dict[str, str]:
    """Spelling key -> module of each file beside this one. Files that register nothing are simply never found."""
    found = pkgutil.iter_modules(built_in_package.__path__, f"{built_in_package.__name__}.")
    return {spelling_key(module.name.rpartition(".")[2]): module.name for module in found}


def _load_built_in(key: str) -> None:
    module = _built_in_modules().get(key)
    if module is not None:
        importlib.import_module(module)


def _load_built_ins() -> None:
    for module in _built_in_modules().values():
        importlib.import_module(module)


def _entry_points() -> Iterator[importlib.metadata.EntryPoint]:
    yield from importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)


def _load_entry_point(key: str) -> None:
    """Import what another package announces under this name, and register it unless that import already did."""
    points = {point.value: point for point in _entry_points() if spelling_key(point.name) == key}
    if len(points) > 1:
        raise DuplicateInitializerError(
            f"Several packages announce {key!r}: {', '.join(sorted(points))}; uninstall all but one."
        )
    for point in points.values():
        try:
            announced = point.load()
        except Exception as error:  # the other package's import may fail in any way
            raise UnknownInitializerError(
                f"The initializer {point.name!r} is announced as {point.value}, but loading that failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if key not in _entries and _entry_of_alias(key) is None:
            register_initializer(point.name)(announced)

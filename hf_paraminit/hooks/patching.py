"""Replacing names inside a host library, as soon as it is imported and never earlier, and putting them back."""

import importlib.machinery
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from typing import Any, Protocol


class Change(Protocol):
    """Something done to a host that can be undone."""

    def apply(self) -> None:
        """Make the change."""

    def revert(self) -> None:
        """Undo it, exactly."""


@dataclass(frozen=True)
class Replacement:
    """One attribute of a module or class that is looked up at call time, and what stands in for it."""

    owner: types.ModuleType | type
    attribute: str
    original: Any
    stand_in: Any

    @classmethod
    def of(cls, owner: types.ModuleType | type, attribute: str, wrap: Callable[[Any], Any]) -> "Replacement":
        """Wrap the present value of the attribute, for a class method the `classmethod` object itself."""
        original = vars(owner)[attribute]
        return cls(owner, attribute, original, wrap(original))

    def apply(self) -> None:
        setattr(self.owner, self.attribute, self.stand_in)

    def revert(self) -> None:
        if vars(self.owner).get(self.attribute) is self.stand_in:  # else somebody else has replaced it since
            setattr(self.owner, self.attribute, self.original)


@dataclass(frozen=True)
class Rebinding:
    """One function replaced under every name that any imported module has for it."""

    original: Any
    stand_in: Any

    def apply(self) -> None:
        _rebind_everywhere(self.original, self.stand_in)

    def revert(self) -> None:
        _rebind_everywhere(self.stand_in, self.original)


class HostPatch:
    """The changes to one host library.

    They are in effect while the patch is installed or any `scoped` block is open, but not before somebody imports the
    host's module.

    Args:
        module_name: the module whose import triggers the changes.
        plan: given that module, the changes to make.
    """

    def __init__(self, module_name: str, plan: Callable[[types.ModuleType], Sequence[Change]]) -> None:
        self._module_name = module_name
        self._plan = plan
        self._lock = threading.RLock()
        self._installed = False
        self._open_scopes = 0
        self._changes: Sequence[Change] = ()
        self._watcher: _ImportWatcher | None = None

    def install(self) -> None:
        """Put the changes in effect until `uninstall`; a second call changes nothing."""
        self._wait_for_running_import()
        with self._lock:
            self._installed = True
            self._update()

    def uninstall(self) -> None:
        """Put the originals back, once no `scoped` block is open; without `install` nothing happens."""
        with self._lock:
            self._installed = False
            self._update()

    @contextmanager
    def scoped(self) -> Iterator[None]:
        """Put the changes in effect for the block; blocks nest and may overlap in threads."""
        self._wait_for_running_import()
        with self._lock:
            self._open_scopes += 1
            self._update()
        try:
            yield
        finally:
            with self._lock:
                self._open_scopes -= 1
                self._update()

    def _wait_for_running_import(self) -> None:
        """Let another thread that is importing the host finish; outside our lock, because its import may need it."""
        if self._module_name in sys.modules:
            importlib.import_module(self._module_name)

    def _update(self) -> None:
        wanted = self._installed or self._open_scopes > 0
        active = bool(self._changes) or self._watcher is not None
        if wanted and not active:
            if self._module_name in sys.modules:
                self._apply(sys.modules[self._module_name])
            else:
                self._watcher = _ImportWatcher(self._module_name, self._on_import)
                sys.meta_path.insert(0, self._watcher)
        elif active and not wanted:
            self._stop_watching()
            for change in reversed(self._changes):
                change.revert()
            self._changes = ()

    def _on_import(self, watcher: "_ImportWatcher", module: types.ModuleType) -> None:
        with self._lock:
            if self._watcher is watcher:  # else uninstalled while the import was running
                self._stop_watching()
                self._apply(module)

    def _stop_watching(self) -> None:
        if self._watcher in sys.meta_path:
            sys.meta_path.remove(self._watcher)
        self._watcher = None

    def _apply(self, module: types.ModuleType) -> None:
        self._changes = self._plan(module)
        for change in self._changes:
            change.apply()


class _ImportWatcher(MetaPathFinder):
    """Finds nothing itself; calls back right after one module has been executed."""

    def __init__(self, module_name: str, callback: Callable[["_ImportWatcher", types.ModuleType], None]) -> None:
        self._module_name = module_name
        self._callback = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module_name:
            return None
        if self not in sys.meta_path:  # taken out while this import was on its way here
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]  # not those before: two watchers would ask each other
        specs = (finder.find_spec(fullname, path, target) for finder in later)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._call_back_after(spec.loader)
        return spec

    def _call_back_after(self, loader: Any) -> None:
        """Shadow this loader's `exec_module` for one call, so that the module keeps its own loader."""
        execute = loader.exec_module

        def execute_and_call_back(module: types.ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # gone already where another watcher's shadow lies on top
            execute(module)
            self._callback(self, module)

        loader.exec_module = execute_and_call_back


def _rebind_everywhere(old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType):
            for attribute in [name for name, value in list(vars(module).items()) if value is old]:
                setattr(module, attribute, new)

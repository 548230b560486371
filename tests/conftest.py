"""What every test can rely on: one thread per pytest-xdist worker, a fixed seed, and a local Hub on request."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_server
import pytest
import torch


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores already
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def script() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """`torch.jit.script` for a process in which much has happened.

    TorchScript knows its builtins by `id`, also those that are gone; now and then an attribute of a module has been
    given such an address and would be taken for a builtin.
    """

    def run(model: torch.nn.Module) -> torch.nn.Module:
        builtins = torch.jit._builtins._get_builtin_table()
        for value in [value for module in model.modules() for value in vars(module).values()]:
            if not callable(value):
                builtins.pop(id(value), None)
        return torch.jit.script(model)

    return run


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hub_server.HubServer]:
    """An empty Hub for this test; `hub.run(code)` runs a client with an empty cache of its own."""
    server = hub_server.start(tmp_path / "hf_home")
    yield server
    server.shutdown()
    server.server_close()

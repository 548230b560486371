"""A zoo that is trained once for all tests that only read it."""

from pathlib import Path

import pytest
from tiny_zoo import build_tiny_zoo

from hf_paraminit.hyperrep.zoo import Zoo


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo") / "tiny", 8)


@pytest.fixture(scope="session")
def zoo_folder(tiny_zoo: Zoo) -> Path:
    return tiny_zoo.folder

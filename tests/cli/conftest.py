"""A predictor small enough to make on the fly, so that no test depends on the one that ships with the package."""

from pathlib import Path

import pytest

from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN

TINY = GHNConfig(hidden_dim=16, num_heads=2, num_layers=1, max_shape=(16, 16, 11, 11), num_classes=10)


@pytest.fixture(scope="session")
def tiny_ghn() -> GHN:
    return GHN.new(TINY, seed=0)


@pytest.fixture(scope="session")
def predictor_folder(tiny_ghn: GHN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictor") / "tiny"
    tiny_ghn.save_pretrained(folder)
    return folder

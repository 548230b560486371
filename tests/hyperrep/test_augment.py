"""Noise and erasing: how much changes, where, and that seeds decide it."""

import pytest
import torch

from hf_paraminit.hyperrep.augment import add_noise, erase
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.hyperrep.zoo_nets import ZooCNN

LAYOUT = TokenLayout.from_module(ZooCNN("cnn-tiny"), 20)
TOKENS = torch.where(LAYOUT.mask, 1.0, 0.0).repeat(64, 1, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("multiplicative", [True, False])
def test_noise_has_its_size_and_spares_padding(multiplicative: bool) -> None:
    tokens = 3 * TOKENS
    noisy = add_noise(tokens, LAYOUT.mask, generator(), sigma=0.1, multiplicative=multiplicative)
    difference = (noisy - tokens)[:, LAYOUT.mask]
    assert float(difference.std()) == pytest.approx(0.3 if multiplicative else 0.1, rel=0.05)
    assert float(difference.mean()) == pytest.approx(0, abs=0.01)
    assert bool((noisy[:, ~LAYOUT.mask] == 0).all())
    again = add_noise(tokens, LAYOUT.mask, generator(), sigma=0.1, multiplicative=multiplicative)
    assert torch.equal(noisy, again)


@pytest.mark.parametrize("mode", ["block", "scatter"])
def test_erasing_overwrites_a_part_of_the_values(mode: str) -> None:
    erased = erase(TOKENS, LAYOUT.mask, generator(), probability=1.0, mode=mode, value=9.0)
    assert bool((erased[:, ~LAYOUT.mask] == 0).all())
    values = erased[:, LAYOUT.mask]
    share = (values == 9).float().mean(1)
    assert float(share.max()) <= 0.33
    assert float(share.min()) >= 0.018  # positions of "scatter" may coincide
    assert float(share.std()) > 0.03
    if mode == "block":  # one run
        assert int((values.diff(dim=1) != 0).sum(1).max()) <= 2
    assert torch.equal(TOKENS, torch.where(LAYOUT.mask, 1.0, 0.0).repeat(64, 1, 1))


def test_erasing_some_checkpoints_with_noise() -> None:
    erased = erase(TOKENS, LAYOUT.mask, generator())
    changed = (erased != TOKENS).flatten(1).any(1)
    assert 20 < int(changed.sum()) < 44
    written = erased[erased != TOKENS]
    assert float(written.std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(erased, erase(TOKENS, LAYOUT.mask, generator()))
    assert torch.equal(TOKENS, erase(TOKENS, LAYOUT.mask, generator(), probability=0.0))


def test_one_checkpoint_without_leading_axes() -> None:
    erased = erase(TOKENS[0].T.contiguous().T, LAYOUT.mask, generator(), probability=1.0, value=5.0)
    assert erased.shape == TOKENS[0].shape
    assert int((erased == 5).sum()) > 0

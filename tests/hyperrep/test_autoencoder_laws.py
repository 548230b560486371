"""Laws of the auto-encoders and their losses that no recording is needed for."""

import pytest
import torch
from tiny_representation import tiny_net

from hf_paraminit.errors import CheckpointError, PredictionError, TrainingConfigError
from hf_paraminit.hyperrep.autoencoder import SequenceAutoEncoder, haloed
from hf_paraminit.hyperrep.config import GlobalConfig, SequenceConfig, VectorLayer
from hf_paraminit.hyperrep.global_autoencoder import GlobalAutoEncoder
from hf_paraminit.hyperrep.loss import layer_importance, masked_reconstruction, mix, nt_xent
from hf_paraminit.hyperrep.tokens import TokenLayout


def autoencoder(**settings: object) -> SequenceAutoEncoder:
    base = {"token_dim": 5, "model_dim": 8, "num_heads": 2, "num_layers": 1, "latent_dim": 3, "window": 6}
    return SequenceAutoEncoder(SequenceConfig(**{**base, **settings})).eval()  # type: ignore[arg-type]


def positions(tokens: int, axes: int = 3) -> torch.Tensor:
    return torch.arange(tokens)[None, :, None].expand(1, tokens, axes)


@pytest.mark.parametrize("num_tokens", [1, 7, 20, 21, 25, 29])
def test_windows_give_every_token_back_once(num_tokens: int) -> None:
    values = torch.randn(3, num_tokens, 2)
    for window, halo in ((0, 0), (5, 0), (5, 4), (40, 3)):
        found = haloed(lambda part, _: part * 2, values, positions(num_tokens), window, halo)
        assert torch.equal(found, values * 2), (window, halo)


@pytest.mark.parametrize(("blocks", "is_independent"), [("gpt2", True), ("torch", True), ("torch-batch-axis", False)])
def test_only_the_published_mistake_lets_networks_see_each_other(blocks: str, is_independent: bool) -> None:
    model = autoencoder(blocks=blocks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = torch.randn(4, 6, 5)
    together = model.encode(tokens, positions(6).expand(4, -1, -1))
    alone = model.encode(tokens[:1], positions(6))
    assert torch.allclose(together[:1], alone, atol=1e-5) is is_independent


def test_learned_positions_end_where_training_ended() -> None:
    model = autoencoder(positions="learned", max_positions=(6, 6, 6))
    model.encode(torch.randn(1, 6, 5), positions(6))
    with pytest.raises(PredictionError, match="position 6 on axis 0 is beyond the 6"):
        model.encode(torch.randn(1, 7, 5), positions(7))
    autoencoder(position_axes=3).encode(torch.randn(1, 70, 5), positions(70))  # sinusoids know no end


def test_two_position_axes_stand_side_by_side() -> None:
    model = autoencoder(positions="learned", max_positions=(9, 9))
    places = model.pe(torch.tensor([[[1, 2], [1, 3]]]))
    assert torch.equal(places[0, 0, :4], places[0, 1, :4])
    assert not torch.equal(places[0, 0, 4:], places[0, 1, 4:])


def test_the_head_takes_windows_of_the_training_length_only() -> None:
    with pytest.raises(PredictionError, match="windows of 6 tokens, found 5"):
        autoencoder().project(torch.randn(2, 5, 3))
    with pytest.raises(PredictionError, match="no head"):
        autoencoder(projection_dim=0).project(torch.randn(2, 6, 3))


def test_configurations_that_cannot_be_are_refused() -> None:
    for settings in ({"model_dim": 9}, {"num_heads": 3}, {"token_dim": 0}, {"positions": "learned"}):
        with pytest.raises(CheckpointError, match="SequenceConfig"):
            autoencoder(**settings)
    with pytest.raises(CheckpointError, match="without gaps"):
        GlobalConfig(layers=(VectorLayer(name="0", start=3, num_neurons=2, inputs=2),))


@pytest.mark.parametrize("compression", ["token", "average", "linear"])
@pytest.mark.parametrize("encoding", ["neuron", "weight"])
def test_the_global_autoencoder_returns_what_it_was_given_in_shape(encoding: str, compression: str) -> None:
    layers = (
        VectorLayer(name="0", start=0, num_neurons=3, inputs=4),
        VectorLayer(name="2", start=15, num_neurons=2, inputs=3),
    )
    config = GlobalConfig(
        layers=layers, encoding=encoding, compression=compression, model_dim=8, num_heads=2, latent_dim=5
    )  # type: ignore[arg-type]
    codes, output = GlobalAutoEncoder(config)(torch.randn(3, 23))
    assert codes.shape == (3, 5)
    assert codes.abs().max() < 1
    assert output.shape == (3, 23)


def test_padding_does_not_count() -> None:
    target = torch.randn(2, 4, 5)
    mask = torch.rand(4, 5) > 0.4
    output = target + 1
    target, noisy = target * mask, output.masked_fill(~mask, 1e3)
    assert masked_reconstruction(noisy, target, mask.expand_as(target)) == pytest.approx(1, abs=1e-5)
    legacy = masked_reconstruction(noisy, target, mask.expand_as(target), legacy=True)
    assert legacy == pytest.approx(float(mask.float().mean()), abs=1e-5)
    scaled = masked_reconstruction(7 * noisy, 7 * target, mask.expand_as(target), normalisation="batch_masked")
    plain = masked_reconstruction(noisy, target, mask.expand_as(target), normalisation="batch_masked")
    assert scaled == pytest.approx(float(plain), rel=1e-2)


def test_balanced_layers_count_alike() -> None:
    layout = TokenLayout.from_module(tiny_net(), 16)
    importance = layer_importance(layout)
    totals = [float((importance[:, None] * layout.mask)[layer.tokens].sum()) for layer in layout.layers]
    assert totals == pytest.approx([totals[0]] * len(totals))
    assert sum(totals) == pytest.approx(float(layout.mask.sum()))


def test_contrast_is_lowest_for_equal_views_and_ignores_lengths() -> None:
    first, second = torch.randn(5, 8), torch.randn(5, 8)
    assert nt_xent(first, first, 0.1) < nt_xent(first, second, 0.1)
    torch.testing.assert_close(nt_xent(first, second, 0.1), nt_xent(3 * first, second / 2, 0.1))


def test_shares_that_cannot_be_mixed_are_refused() -> None:
    loss = torch.tensor(1.0)
    assert mix(loss, None, gamma=0.0, temperature=0.1)["loss"] == 1
    for gamma in (-0.1, 1.1, 0.5):
        with pytest.raises(TrainingConfigError, match="gamma"):
            mix(loss, None, gamma=gamma, temperature=0.1)

"""SANE's auto-encoder: weights as a sequence of tokens, a code for each (arXiv 2406.09997, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_paraminit.errors import PredictionError
from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.windows import cut_windows, halo_windows

# Legend: B networks or windows, T tokens, t weights per token, d model width, z code width, P position axes.

_TORCH_FEEDFORWARD = 2048  # torch's default, which the published code leaves
_WINDOWS_AT_ONCE = 16  # keeps the activations of a long network within the cache
_FREQUENCIES, _LONGEST = 16, 100_000.0  # of sinusoidal positions; SANE's longest table has 55 000 rows


class SequenceAutoEncoder(nn.Module):
    """Encodes each token of a sequence with its context, and decodes the codes; keys are the published ones.

    Args:
        config: Architecture.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.model_dim
        self.tokenizer = nn.Linear(config.token_dim, dim)
        self.pe = _LearnedPositions(config) if config.positions == "learned" else _SinusoidalPositions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer_encoder = _transformer(config)
        self.encoder_comp = nn.Linear(dim, config.latent_dim)
        self.decoder_comp = nn.Linear(config.latent_dim, dim)
        self.transformer_decoder = _transformer(config)
        self.detokenizer = nn.Linear(dim, config.token_dim)
        if config.projection_dim:
            self.projection_head: ProjectionHead | None = ProjectionHead(
                config.latent_dim * config.window, config.projection_dim
            )
        else:
            self.projection_head = None
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """The published start: N(0, 0.02), and residual outputs smaller by the root of twice the depth."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                is_residual = name.endswith("c_proj")
                std = 0.02 / math.sqrt(2 * self.config.num_layers) if is_residual else 0.02
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def encode(self, tokens_BTt: Tensor, positions_BTP: Tensor) -> Tensor:
        """Return the codes (B, T, z).

        Args:
            tokens_BTt: (B, T, t) weights, zero where there is padding.
            positions_BTP: (B, T, P) integers: number of the token, of its layer, of its output channel.
        """
        return self._encode(tokens_BTt, self.pe(positions_BTP))

    def decode(self, codes_BTz: Tensor, positions_BTP: Tensor) -> Tensor:
        """Return the tokens (B, T, t) of codes (B, T, z) at positions (B, T, P)."""
        return self._decode(codes_BTz, self.pe(positions_BTP))

    def _encode(self, tokens_BTt: Tensor, places_BTd: Tensor) -> Tensor:
        hidden_BTd = self.dropout(self.tokenizer(tokens_BTt) + places_BTd)
        return self.encoder_comp(self.transformer_encoder(hidden_BTd))

    def _decode(self, codes_BTz: Tensor, places_BTd: Tensor) -> Tensor:
        hidden_BTd = self.dropout(self.decoder_comp(codes_BTz) + places_BTd)
        return self.detokenizer(self.transformer_decoder(hidden_BTd))

    def forward(self, tokens_BTt: Tensor, positions_BTP: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes (B, T, z) and the reconstruction (B, T, t)."""
        codes_BTz = self.encode(tokens_BTt, positions_BTP)
        return codes_BTz, self.decode(codes_BTz, positions_BTP)

    def project(self, codes_BTz: Tensor) -> Tensor:
        """Return what the contrastive loss compares, (B, projection_dim), of windows of the training length.

        Raises:
            PredictionError: There is no head, or the window is of another length.
        """
        if self.projection_head is None or codes_BTz.shape[1] != self.config.window:
            raise PredictionError(
                f"The projection head takes windows of {self.config.window} tokens, found {codes_BTz.shape[1]}"
                f"{'' if self.projection_head else ', and this auto-encoder has no head (projection_dim=0)'}."
            )
        return self.projection_head(codes_BTz.flatten(1))

    def encode_haloed(self, tokens_BTt: Tensor, positions_BTP: Tensor, window: int, halo: int) -> Tensor:
        """Encode a long sequence window by window; see `haloed`."""
        return haloed(self._encode, tokens_BTt, self.pe(positions_BTP), window, halo)

    def decode_haloed(self, codes_BTz: Tensor, positions_BTP: Tensor, window: int, halo: int) -> Tensor:
        """Decode a long sequence window by window; see `haloed`."""
        return haloed(self._decode, codes_BTz, self.pe(positions_BTP), window, halo)


def embedding(codes_BTz: Tensor) -> Tensor:
    """The code of a whole network: the mean of its tokens' codes, (B, z)."""
    return codes_BTz.mean(1)


def haloed(
    function: Callable[[Tensor, Tensor], Tensor], values: Tensor, places: Tensor, window: int, halo: int
) -> Tensor:
    """Apply a function of sequences to overlapping windows and keep the inner part of each (section 3.3 of the paper).

    Args:
        function: Takes values (B, T, *) and what stands for their places (B, T, d).
        values: (B, T, *).
        places: (1, T, d) for all sequences, or (B, T, d).
        window: Tokens that each window contributes; 0 for the whole sequence at once.
        halo: Tokens of context on either side.

    Returns:
        (B, T, *): as long as the input.
    """
    batch = len(values)
    if window == 0:
        return function(values, places.expand(batch, -1, -1))
    windows = halo_windows(values.shape[1], window, halo)
    at_once = max(1, _WINDOWS_AT_ONCE // batch)
    output: Tensor | None = None
    for group in (windows[first : first + at_once] for first in range(0, len(windows), at_once)):
        cut_places = cut_windows(places, group).expand(batch, -1, -1, -1)
        parts = function(cut_windows(values, group).flatten(0, 1), cut_places.flatten(0, 1))
        parts = parts.unflatten(0, (batch, len(group)))
        if output is None:
            output = parts.new_empty(*values.shape[:2], parts.shape[-1])
        for number, place in enumerate(group):
            first = place.start + place.offset
            output[:, first : first + place.size] = parts[:, number, place.offset : place.offset + place.size]
    assert output is not None
    return output


class _Attention(nn.Module):
    """Multi-head attention of every token to every token, without biases."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.c_attn = nn.Linear(dim, 3 * dim, bias=False)
        self.c_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTd: Tensor) -> Tensor:
        batch, tokens, dim = x_BTd.shape
        heads = self.c_attn(x_BTd).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return F.dropout(self.c_proj(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class _Perceptron(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(dim, 4 * dim, bias=False)
        self.c_proj = nn.Linear(4 * dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTd: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x_BTd))))


class _Block(nn.Module):
    """Pre-norm block of GPT-2 without biases."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.model_dim, bias=False)
        self.attn = _Attention(config.model_dim, config.num_heads, config.dropout)
        self.ln_2 = nn.LayerNorm(config.model_dim, bias=False)
        self.mlp = _Perceptron(config.model_dim, config.dropout)

    def forward(self, x_BTd: Tensor) -> Tensor:
        x_BTd = x_BTd + self.attn(self.ln_1(x_BTd))
        return x_BTd + self.mlp(self.ln_2(x_BTd))


class _Transformer(nn.Module):
    """A stack of blocks, without a norm behind the last."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleList(_Block(config) for _ in range(config.num_layers))

    def forward(self, x_BTd: Tensor) -> Tensor:
        for block in self.transformer:
            x_BTd = block(x_BTd)
        return x_BTd


def _transformer(config: SequenceConfig) -> nn.Module:
    if config.blocks == "gpt2":
        return _Transformer(config)
    layer = nn.TransformerEncoderLayer(
        config.model_dim,
        config.num_heads,
        _TORCH_FEEDFORWARD,
        config.dropout,
        batch_first=config.blocks == "torch",
    )
    return nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)


class _LearnedPositions(nn.Module):
    """One table for the token's number, one for the layer's and one for the channel's (two axes: one table each)."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        half = config.model_dim // 2
        for axis, rows in enumerate(config.max_positions, start=1):
            self.add_module(f"pe{axis}", nn.Embedding(rows, half))
        self.limits = config.max_positions

    def forward(self, positions_BTP: Tensor) -> Tensor:
        positions_BTP = positions_BTP.long()
        parts = []
        for axis, limit in enumerate(self.limits):
            index_BT = positions_BTP[..., axis]
            if int(index_BT.max()) >= limit:
                raise PredictionError(
                    f"A token's position {int(index_BT.max())} on axis {axis} is beyond the {limit} that the "
                    "auto-encoder has learned. The network is larger than those of its zoo."
                )
            parts.append(self.get_submodule(f"pe{axis + 1}")(index_BT))
        if len(parts) == 2:
            return torch.cat(parts, -1)
        return torch.cat([parts[0] + parts[1], parts[2]], -1)


class _SinusoidalPositions(nn.Module):
    """Sines and cosines of every axis, mixed by one linear map: any length, and lengths between those seen."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.mix = nn.Linear(config.position_axes * 2 * _FREQUENCIES, config.model_dim)

    def forward(self, positions_BTP: Tensor) -> Tensor:
        exponents = torch.arange(_FREQUENCIES, dtype=torch.float32, device=positions_BTP.device) / _FREQUENCIES
        frequencies = math.pi / _LONGEST**exponents
        places_BTd: Tensor = self.mix.bias
        # The map of all axes is the sum of a map of each, and most axes have few different values.
        for axis, weight in enumerate(self.mix.weight.split(2 * _FREQUENCIES, 1)):
            index_BT = positions_BTP[..., axis].long()
            angles = torch.arange(int(index_BT.max()) + 1, device=index_BT.device)[:, None] * frequencies
            places_BTd = places_BTd + F.linear(torch.cat([angles.sin(), angles.cos()], -1), weight)[index_BT]
        return places_BTd


class ProjectionHead(nn.Module):
    """What the contrastive loss of SANE looks at."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(inputs, outputs, bias=False),
            nn.LayerNorm(outputs),
            nn.ReLU(),
            nn.Linear(outputs, outputs, bias=False),
            nn.LayerNorm(outputs),
            nn.ReLU(),
        )

    def forward(self, flat_codes: Tensor) -> Tensor:
        return self.head(flat_codes)

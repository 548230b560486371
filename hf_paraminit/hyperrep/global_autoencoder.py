"""The auto-encoder of whole networks: one code per network of one architecture (arXiv 2209.14733, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_paraminit.hyperrep.config import GlobalConfig

# Legend: B networks, W weights of a network, T tokens, d model width, L length of a code.

_NORM_EPSILON = 1e-6


class GlobalAutoEncoder(nn.Module):
    """Maps flattened networks (B, W) to codes (B, L) and back; keys are the published ones.

    Args:
        config: Architecture.
    """

    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def encode(self, weights_BW: Tensor) -> Tensor:
        """Return the codes (B, L)."""
        return self.encoder(weights_BW)

    def decode(self, codes_BL: Tensor) -> Tensor:
        """Return the flattened networks (B, W)."""
        return self.decoder(codes_BL)

    def forward(self, weights_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes (B, L) and the reconstruction (B, W)."""
        codes_BL = self.encode(weights_BW)
        return codes_BL, self.decode(codes_BL)


class _Encoder(nn.Module):
    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.compression = config.compression
        dim, num_tokens = config.model_dim, config.num_tokens
        if config.compression == "token":
            self.comp_token = nn.Parameter(torch.randn(1, 1, dim))
            num_tokens += 1
        self.token_embeddings = _NeuronEmbedding(config) if config.encoding == "neuron" else _WeightEmbedding(dim)
        self.position_embeddings = nn.Embedding(num_tokens, dim)
        _add_blocks(self, config)
        pooled = dim * num_tokens if config.compression == "linear" else dim
        bound = [nn.Tanh()] if config.bounded else []
        self.vec2neck = nn.Sequential(nn.Linear(pooled, config.latent_dim), *bound)

    def forward(self, weights_BW: Tensor) -> Tensor:
        x_BTd = self.token_embeddings(weights_BW)
        if self.compression == "token":
            x_BTd = torch.cat([self.comp_token.expand(len(x_BTd), -1, -1), x_BTd], 1)
        x_BTd = _run_blocks(self, x_BTd + self.position_embeddings.weight)
        if self.compression == "token":
            return self.vec2neck(x_BTd[:, 0])
        return self.vec2neck(x_BTd.mean(1) if self.compression == "average" else x_BTd.flatten(1))


class _Decoder(nn.Module):
    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.repeat = config.decompression == "repeat"
        self.num_tokens, dim = config.num_tokens, config.model_dim
        self.decoder_bias = nn.Parameter(torch.zeros(config.latent_dim)) if config.decoder_bias else None
        self.nec2vec = nn.Linear(config.latent_dim, dim if self.repeat else dim * self.num_tokens)
        self.position_embeddings = nn.Embedding(self.num_tokens, dim)
        _add_blocks(self, config)
        self.token_debeddings = _NeuronDebedding(config) if config.encoding == "neuron" else _WeightDebedding(dim)

    def forward(self, codes_BL: Tensor) -> Tensor:
        if self.decoder_bias is not None:
            codes_BL = codes_BL + self.decoder_bias
        x_BTd = self.nec2vec(codes_BL).unflatten(1, (1 if self.repeat else self.num_tokens, -1))
        return self.token_debeddings(_run_blocks(self, x_BTd + self.position_embeddings.weight))


def _add_blocks(owner: nn.Module, config: GlobalConfig) -> None:
    """The published names differ between the kinds of blocks."""
    if config.blocks == "pre-norm":
        owner.layers = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        return
    layer = nn.TransformerEncoderLayer(  # batch_first=False on (B, T, d): attention over the batch, as published
        config.model_dim, config.num_heads, config.feedforward_dim, config.dropout
    )
    norm = _Norm(config.model_dim) if config.normalize else None
    owner.transformer = nn.TransformerEncoder(layer, config.num_blocks, norm, enable_nested_tensor=False)


def _run_blocks(owner: nn.Module, x_BTd: Tensor) -> Tensor:
    if "transformer" in owner._modules:
        return owner.get_submodule("transformer")(x_BTd)
    for block in owner.get_submodule("layers").children():
        x_BTd = block(x_BTd)
    return x_BTd


class _Norm(nn.Module):
    """Not a layer norm: the standard deviation is the unbiased one, and epsilon is added to it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.alpha * centred / (x.std(-1, keepdim=True) + _NORM_EPSILON) + self.bias


class _Attention(nn.Module):
    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.num_heads = config.num_heads
        self.q_linear, self.v_linear, self.k_linear = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = config.dropout
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BTd: Tensor) -> Tensor:
        query, key, value = (
            linear(x_BTd).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.q_linear, self.k_linear, self.v_linear)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.model_dim, config.feedforward_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.linear_2 = nn.Linear(config.feedforward_dim, config.model_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.dropout(F.relu(self.linear_1(x))))


class _Block(nn.Module):
    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.norm_1 = _Norm(config.model_dim) if config.normalize else nn.Identity()
        self.norm_2 = _Norm(config.model_dim) if config.normalize else nn.Identity()
        self.attn = _Attention(config)
        self.ff = _FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTd: Tensor) -> Tensor:
        x_BTd = x_BTd + self.dropout(self.attn(self.norm_1(x_BTd)))
        return x_BTd + self.dropout(self.ff(self.norm_2(x_BTd)))


class _NeuronEmbedding(nn.Module):
    """A linear map per layer, from a neuron's weights and bias to a token."""

    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.spans = config.layers
        self.layer_lst = nn.ModuleList(nn.Linear(layer.inputs + 1, config.model_dim) for layer in config.layers)

    def forward(self, weights_BW: Tensor) -> Tensor:
        tokens = []
        for span, linear in zip(self.spans, self.layer_lst, strict=True):
            border = span.stop - span.num_neurons
            weights = weights_BW[:, span.start : border].unflatten(1, (span.num_neurons, span.inputs))
            biases = weights_BW[:, border : span.stop, None]
            tokens.append(linear(torch.cat([weights, biases], -1)))
        return torch.cat(tokens, 1)


class _NeuronDebedding(nn.Module):
    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.spans = config.layers
        self.layer_lst = nn.ModuleList(nn.Linear(config.model_dim, layer.inputs + 1) for layer in config.layers)

    def forward(self, x_BTd: Tensor) -> Tensor:
        parts: list[Tensor] = []
        tokens_by_layer = x_BTd.split([span.num_neurons for span in self.spans], 1)
        for linear, tokens in zip(self.layer_lst, tokens_by_layer, strict=True):
            neurons = linear(tokens)
            parts += [neurons[..., :-1].flatten(1), neurons[..., -1]]
        return torch.cat(parts, 1)


class _WeightEmbedding(nn.Module):
    """One linear map for every single weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, dim)

    def forward(self, weights_BW: Tensor) -> Tensor:
        return self.embed(weights_BW[..., None])


class _WeightDebedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight_debedder = nn.Linear(dim, 1)

    def forward(self, x_BTd: Tensor) -> Tensor:
        return self.weight_debedder(x_BTd)[..., 0]


class GlobalProjectionHead(nn.Module):
    """What the contrastive loss of the global auto-encoder looks at.

    Args:
        latent_dim: Length L of a code.
        hidden_dim: Width; by default L.
        output_dim: Of the result; by default half of L.
        num_layers: Hidden layers.
    """

    def __init__(
        self, latent_dim: int, hidden_dim: int | None = None, output_dim: int | None = None, num_layers: int = 2
    ) -> None:
        super().__init__()
        hidden = hidden_dim or latent_dim
        output = output_dim or latent_dim // 2
        parts: list[nn.Module] = []
        for inputs in [latent_dim, *[hidden] * (num_layers - 1)]:
            parts += [nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        self.layers = nn.Sequential(*parts, nn.Linear(hidden, output), nn.BatchNorm1d(output))
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.constant_(module.bias, 0.01)

    def forward(self, codes_BL: Tensor) -> Tensor:
        return self.layers(codes_BL)

"""Recurrent layers as one operation each: run step by step they would be thousands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def show_as_one_operation(model: nn.Module) -> None:
    """Replace the forward pass of LSTM, GRU and RNN layers by one autograd function that has the results' shapes.

    Args:
        model: A copy made for tracing; its recurrent layers compute nothing afterwards.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.forward = _Forward(module)


class _Forward:
    def __init__(self, layer: nn.RNNBase) -> None:
        self.layer = layer

    def __call__(self, sequence: Any, state: Any = None) -> Any:
        layer = self.layer
        if not isinstance(sequence, Tensor):  # a packed sequence
            return type(layer).forward(layer, sequence, state)
        output, last, cell = _Recurrence.apply(sequence, layer, *layer.parameters())
        return (output, (last, cell)) if isinstance(layer, nn.LSTM) else (output, last)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sequence: Tensor, layer: nn.RNNBase, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_directions = 2 if layer.bidirectional else 1
        width = layer.proj_size or layer.hidden_size
        batch_shape = () if sequence.dim() == 2 else (sequence.shape[0 if layer.batch_first else 1],)
        state_shape = (layer.num_layers * num_directions, *batch_shape)
        return (
            sequence.new_zeros(*sequence.shape[:-1], num_directions * width),
            sequence.new_zeros(*state_shape, width),
            sequence.new_zeros(*state_shape, layer.hidden_size),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("traced only, never run backwards")

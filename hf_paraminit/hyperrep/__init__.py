"""Hyper-representations: model zoos, tokens of weights, auto-encoders over them, and sampling of new weights."""

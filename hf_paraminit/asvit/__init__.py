"""As-ViT: a configurable ViT, training-free scores, topology search, growth, progressive tokenisation (ICLR 2022)."""

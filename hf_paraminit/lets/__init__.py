"""LeTs: a compact learngene and the learned transformations that make ViTs of any depth and width from it."""

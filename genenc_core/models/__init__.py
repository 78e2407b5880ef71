"""Build an encoder [B, 3, H, W] -> [B, C, h, w] from any model name, module and weights."""

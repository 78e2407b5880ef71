"""A small SAM encoder with the real structure, and checkpoints of random tensors under published names."""

from functools import partial

import torch
from timm.models import vision_transformer_sam
from torch import nn

GLOBAL_BLOCKS = (1, 3)
HEADS = 2


def construct(architecture: str, choice: object, *, name: str) -> nn.Module:
    """Replacement for `sam.construct`: 4 blocks of 32 channels, and SAM's neck of 256."""
    return vision_transformer_sam.VisionTransformerSAM(
        img_size=1024,
        embed_dim=32,
        depth=4,
        num_heads=HEADS,
        num_classes=0,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=GLOBAL_BLOCKS,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
    )


def random_state(model: nn.Module, seed: int, *, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return random tensors for every weight of timm's `model`, under Segment Anything's names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        fan = tensor[0].numel() if tensor.ndim > 1 and "pos" not in name else 25
        drawn = torch.randn(tensor.shape, generator=generator) / fan**0.5
        drawn = drawn + 1 if name.endswith("weight") and tensor.ndim == 1 else drawn
        state[name.replace("mlp.fc", "mlp.lin")] = drawn.to(dtype)
    return state

"""Reference implementation of SAM's image encoder in plain tensor operations, from its description."""

from collections.abc import Mapping

import torch
from torch.nn import functional

State = Mapping[str, torch.Tensor]
WINDOW = 14


def encode(state: State, images: torch.Tensor, *, heads: int, global_blocks: tuple[int, ...]) -> torch.Tensor:
    """Return the neck's map [B, 256, H/16, W/16] of normalised images; `state` uses Segment Anything's names."""
    patches = functional.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    tokens = patches.permute(0, 2, 3, 1) + position_embedding(state["pos_embed"], patches.shape[2:])
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for index in range(depth):
        block = {name.split(".", 2)[2]: tensor for name, tensor in state.items() if name.startswith(f"blocks.{index}.")}
        given = normed(tokens, block["norm1.weight"], block["norm1.bias"])
        attend = attention if index in global_blocks else windowed_attention
        tokens = tokens + attend(given, block, heads)
        given = normed(tokens, block["norm2.weight"], block["norm2.bias"])
        hidden = functional.gelu(given @ block["mlp.lin1.weight"].T + block["mlp.lin1.bias"])
        tokens = tokens + hidden @ block["mlp.lin2.weight"].T + block["mlp.lin2.bias"]
    maps = functional.conv2d(tokens.permute(0, 3, 1, 2), state["neck.0.weight"])
    maps = over_channels(maps, state["neck.1.weight"], state["neck.1.bias"])
    maps = functional.conv2d(maps, state["neck.2.weight"], padding=1)
    return over_channels(maps, state["neck.3.weight"], state["neck.3.bias"])


def compress(state: State, maps: torch.Tensor) -> torch.Tensor:
    """Apply DeepSeek's two strided convolutions to the neck's map."""
    return functional.conv2d(
        functional.conv2d(maps, state["net_2.weight"], stride=2, padding=1), state["net_3.weight"], stride=2, padding=1
    )


def position_embedding(embedding: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Resample the embedding [1, 64, 64, E] to another grid."""
    if tuple(embedding.shape[1:3]) == tuple(grid):
        return embedding
    planar = embedding.permute(0, 3, 1, 2).float()
    resized = functional.interpolate(planar, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1)


def normed(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Normalise the last axis with SAM's epsilon."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def over_channels(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Normalise the channels of [B, C, h, w]."""
    return normed(maps.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def windowed_attention(tokens: torch.Tensor, block: State, heads: int) -> torch.Tensor:
    """Attend within windows of 14 x 14; the grid is padded with zeros to whole windows, which are attended to."""
    height, width = tokens.shape[1:3]
    padded = functional.pad(tokens, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    made = torch.zeros_like(padded)
    for top in range(0, padded.shape[1], WINDOW):
        for left in range(0, padded.shape[2], WINDOW):
            window = (slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW))
            made[window] = attention(padded[window], block, heads)
    return made[:, :height, :width]


def attention(tokens: torch.Tensor, block: State, heads: int) -> torch.Tensor:
    """Attend over all of [B, H, W, E] with decomposed relative positions, head by head."""
    batch, height, width, embed = tokens.shape
    size = embed // heads
    fused = tokens @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]
    rows, columns = (relative(block[f"attn.rel_pos_{axis}"], count) for axis, count in (("h", height), ("w", width)))
    made = []
    for head in range(heads):
        query, key, value = (
            fused[..., part * embed + head * size : part * embed + (head + 1) * size] for part in range(3)
        )
        scores = torch.einsum("byxc,bvuc->byxvu", query, key) / size**0.5
        scores = scores + torch.einsum("byxc,yvc->byxv", query, rows)[..., :, None]
        scores = scores + torch.einsum("byxc,xuc->byxu", query, columns)[..., None, :]
        shares = scores.flatten(3).softmax(-1).reshape(scores.shape)
        made.append(torch.einsum("byxvu,bvuc->byxc", shares, value))
    together = torch.cat(made, -1).reshape(batch, height, width, embed)
    return together @ block["attn.proj.weight"].T + block["attn.proj.bias"]


def relative(table: torch.Tensor, count: int) -> torch.Tensor:
    """Return the embedding of every (query, key) pair on one axis, [count, count, C]."""
    wanted = 2 * count - 1
    if len(table) != wanted:
        table = functional.interpolate(table.T[None], size=wanted, mode="linear")[0].T
    steps = torch.arange(count)
    return table[steps[:, None] - steps[None, :] + count - 1]

"""The decoder of a masked autoencoder (SatMAE) as a pixel decoder: transformer blocks, then every token its patch."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from genenc_core import errors
from genenc_core.models.factory import decoders
from genenc_core.models.factory import features as feats

Features = list[torch.Tensor]


class SatMAEHead(nn.Module):
    """Tokens [B, prefix + h * w, C] of one layer -> map [B, in_chans, h * patch_size, w * patch_size].

    A linear layer to `output_embed_dim`, fixed sine-cosine positions (He et al. 2022, section A.1), `depth`
    transformer blocks, normalisation, a linear layer to the patch's pixels. Nothing is masked: every token is there.
    """

    includes_head = False
    tokens: feats.TokenLayout | None = None
    """how the backbone's tokens stand, where that is known; the builder sets it"""

    def __init__(
        self,
        channel_list: Sequence[int],
        output_embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        in_chans: int = 3,
        bias: bool = True,
        in_index: int = -1,
    ) -> None:
        super().__init__()
        if output_embed_dim % 4 or output_embed_dim % num_heads:
            raise errors.InputError(
                f"SatMAEHead: {output_embed_dim=} must be a multiple of 4 and of num_heads ({num_heads})."
            )
        width = decoders.entry(channel_list, in_index, who="SatMAEHead", argument="in_index")
        self.in_index = in_index
        self.patch_size = patch_size
        self.out_channels = in_chans
        self.decoder_embed = nn.Linear(width, output_embed_dim, bias=bias)
        self.decoder_blocks = nn.ModuleList(_Block(output_embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(output_embed_dim)
        self.decoder_pred = nn.Linear(output_embed_dim, patch_size**2 * in_chans)

    def forward(self, features: Features, image_size: feats.Size | None = None) -> torch.Tensor:
        """Return the pixels that the tokens stand for.

        Raises:
            EncoderError: maps instead of tokens, or tokens that fill no grid.
        """
        tokens = features[self.in_index]
        if tokens.ndim != 3:
            raise errors.EncoderError(f"SatMAEHead takes tokens [B, N, C], not {list(tokens.shape)}.")
        prefix = 1 if self.tokens is None else self.tokens.prefix
        count = int(tokens.shape[1]) - prefix
        grid = feats.token_grid(count, size=image_size, layout=self.tokens, rows=None)
        embedded = self.decoder_embed(tokens)
        positions = sine_cosine(grid, int(embedded.shape[2])).to(embedded)
        embedded = embedded + functional.pad(positions, (0, 0, prefix, 0))
        for block in self.decoder_blocks:
            embedded = block(embedded)
        patches = self.decoder_pred(self.decoder_norm(embedded))[:, prefix:]
        return self._pixels(patches, grid)

    def _pixels(self, patches: torch.Tensor, grid: feats.Size) -> torch.Tensor:
        """Put [B, h * w, p * p * C] (channel last in a patch) where the patches lie."""
        side = self.patch_size
        laid = patches.reshape(-1, *grid, side, side, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        return laid.reshape(-1, self.out_channels, grid[0] * side, grid[1] * side)


class _Block(nn.Module):
    """A pre-norm transformer block, its layers named as in timm."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        hidden = functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.mlp["fc2"](hidden)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        split = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def sine_cosine(grid: feats.Size, width: int) -> torch.Tensor:
    """Return fixed positions [h * w, width]: of each axis (column, then row) the sines and cosines of x / 10000^(k/d).

    d = width / 4 frequencies per axis, as in MAE's `get_2d_sincos_pos_embed` (He et al. 2022).
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1).float()

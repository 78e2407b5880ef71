"""Small backbones for tests of the factory: a pyramid of maps, and a transformer-like one that returns tokens."""

import itertools

import torch
from torch import nn

from genenc_core.factory import features


class Pyramid(nn.Module):
    """Maps with 4, 8, 16, 32 channels at 1/2, 1/4, 1/8 and 1/16 of the image."""

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.out_channels = [4, 8, 16, 32]
        widths = [in_chans, *self.out_channels]
        pairs = itertools.pairwise(widths)
        self.stages = nn.ModuleList(nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairs)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the four maps."""
        found = []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        return found


class Patches(nn.Module):
    """`depth` token lists [B, prefix + h * w, 32] of 8-pixel patches; declares their grid if `known`."""

    def __init__(self, *, prefix: int = 1, depth: int = 4, known: bool = True, in_chans: int = 3) -> None:
        super().__init__()
        self.out_channels = [32] * depth
        self.patch_size = 8
        self.embed = nn.Conv2d(in_chans, 32, 8, stride=8)
        self.first = nn.Parameter(torch.randn(1, prefix, 32))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        if known:
            self.tokens = features.PatchTokens(prefix=prefix, patch=(8, 8), registers=max(prefix - 1, 0))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the token lists."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.first.expand(len(patches), -1, -1), patches), 1)
        found = []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return found


class Block(nn.Module):
    """A layer with a fused projection, like attention."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        mixed = tokens + query * torch.tanh(key) + value
        found: torch.Tensor = mixed + self.fc2(torch.tanh(self.fc1(mixed)))
        return found


def pyramid(in_chans: int = 3) -> nn.Module:
    """Return `Pyramid`."""
    return Pyramid(in_chans)


class SixBands(nn.Module):
    """A backbone of six channels, which says so as TerraTorch's do."""

    def __init__(self) -> None:
        super().__init__()
        self.in_chans = 6
        self.out_channels = [4]
        self.body = nn.Conv2d(6, 4, 4, stride=4)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one map [B, 4, H/4, W/4]."""
        return [self.body(images)]


def six_bands() -> nn.Module:
    """Return `SixBands`."""
    return SixBands()

"""Decoders: identity, linear, MLP, fully convolutional, UPerNet, ASPP, U-Net and SatMAE's."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from genenc_core import errors
from genenc_core.factory import features as feats
from genenc_core.factory import heads

Features = list[torch.Tensor]


class IdentityDecoder(nn.Module):
    """Return the feature at `out_index` unchanged."""

    includes_head = False

    def __init__(self, channel_list: Sequence[int], out_index: int = -1) -> None:
        super().__init__()
        self.out_channels = entry(channel_list, out_index, who="IdentityDecoder", argument="out_index")
        self.out_index = out_index

    def forward(self, features: Features) -> torch.Tensor:
        """Return the selected feature."""
        return features[self.out_index]


class LinearDecoder(nn.Module):
    """Transposed convolution of one feature to logits, upsampled by `upsampling_size`."""

    includes_head = True

    def __init__(self, channel_list: Sequence[int], num_classes: int, upsampling_size: int, in_index: int = -1) -> None:
        super().__init__()
        if upsampling_size < 1:
            raise errors.InputError(f"LinearDecoder: {upsampling_size=} must be at least 1.")
        channels = entry(channel_list, in_index, who="LinearDecoder", argument="in_index")
        self.in_index = in_index
        self.out_channels = num_classes
        self.conv = nn.ConvTranspose2d(channels, num_classes, upsampling_size, stride=upsampling_size)

    def forward(self, features: Features) -> torch.Tensor:
        """Return logits [B, num_classes, h * upsampling_size, w * upsampling_size]."""
        logits: torch.Tensor = self.conv(features[self.in_index])
        return logits


class MLPDecoder(nn.Module):
    """Linear layer and activation on the concatenated features, at each cell."""

    includes_head = False

    def __init__(self, channel_list: Sequence[int], activation: str = "ReLU", out_index: int = -1) -> None:
        super().__init__()
        self.out_channels = entry(channel_list, out_index, who="MLPDecoder", argument="out_index")
        self.hidden_layer = nn.Linear(sum(channel_list), self.out_channels)
        self.activation = heads.activation(activation)

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, C, h, w] with the channels of the feature at `out_index`.

        Raises:
            EncoderError: the maps differ in size.
        """
        sizes = [tuple(int(side) for side in feature.shape[2:]) for feature in features]
        if len(set(sizes)) != 1:
            raise errors.EncoderError(
                f"MLPDecoder takes maps of one size, not {sizes}: select some with the neck SelectIndices."
            )
        cells = torch.cat(features, 1).movedim(1, -1)
        return self.activation(self.hidden_layer(cells)).movedim(-1, 1)  # type: ignore[no-any-return]


class _ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.ln(maps.movedim(1, -1)).movedim(-1, 1).contiguous()  # type: ignore[no-any-return]


class FCNDecoder(nn.Module):
    """`num_convs` times: transposed convolution x 2, 3 x 3 convolution, layer normalisation, GELU."""

    includes_head = False

    def __init__(
        self, channel_list: Sequence[int], channels: int = 256, num_convs: int = 4, in_index: int = -1
    ) -> None:
        super().__init__()
        if num_convs < 1 or channels < 1:
            raise errors.InputError(f"FCNDecoder: {num_convs=} and {channels=} must be at least 1.")
        first = entry(channel_list, in_index, who="FCNDecoder", argument="in_index")
        self.in_index = in_index
        self.out_channels = channels
        self.convs = nn.Sequential(*(_doubling(first if i == 0 else channels, channels) for i in range(num_convs)))

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, channels, h * 2 ** num_convs, w * 2 ** num_convs]."""
        decoded: torch.Tensor = self.convs(features[self.in_index])
        return decoded


def _doubling(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(before, after, 2, stride=2),
        nn.Conv2d(after, after, 3, padding=1),
        _ChannelNorm(after),
        nn.GELU(),
    )


def entry(channel_list: Sequence[int], index: int, *, who: str, argument: str) -> int:
    """Return the channels of one feature.

    Raises:
        InputError: there is no such feature.
    """
    if not -len(channel_list) <= index < len(channel_list):
        raise errors.InputError(f"{who}: {argument} {index} is out of range for {len(channel_list)} features.")
    return channel_list[index]


class _ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, before: int, after: int, kernel: int, *, padding: int = 0, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=padding, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.act = nn.ReLU()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self.act(self.norm(self.conv(maps)))
        return activated


class UperNetDecoder(nn.Module):
    """UPerNet (Xiao et al. 2018): pyramid pooling of the coarsest map, a feature pyramid, and fusion of all levels.

    Layers are named as in mmsegmentation and TerraTorch, for compatibility of weights.
    """

    includes_head = False

    def __init__(
        self,
        channel_list: Sequence[int],
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        channels: int = 256,
        align_corners: bool = True,
        scale_modules: bool = False,
    ) -> None:
        super().__init__()
        if scale_modules:
            raise errors.InputError(
                "UperNetDecoder: scale_modules is deprecated in TerraTorch and not supported: add the neck "
                "LearnedInterpolateToPyramidal before the decoder, which has the same layers."
            )
        self.out_channels = channels
        self.align_corners = align_corners
        coarsest = channel_list[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), _ConvNormAct(coarsest, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = _ConvNormAct(coarsest + len(pool_scales) * channels, channels, 3, padding=1)
        self.lateral_convs = nn.ModuleList(_ConvNormAct(width, channels, 1) for width in channel_list[:-1])
        self.fpn_convs = nn.ModuleList(_ConvNormAct(channels, channels, 3, padding=1) for _ in channel_list[:-1])
        self.fpn_bottleneck = _ConvNormAct(len(channel_list) * channels, channels, 3, padding=1)

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, channels, h, w] at the size of the first feature."""
        coarsest = features[-1]
        pooled = [self._resized(pool(coarsest), coarsest) for pool in self.psp_modules]
        levels = [lateral(maps) for lateral, maps in zip(self.lateral_convs, features[:-1], strict=True)]
        levels.append(self.bottleneck(torch.cat((coarsest, *pooled), 1)))
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + self._resized(levels[index], levels[index - 1])
        smooth = [convolution(maps) for convolution, maps in zip(self.fpn_convs, levels[:-1], strict=True)]
        smooth.append(levels[-1])
        fused: torch.Tensor = self.fpn_bottleneck(
            torch.cat([smooth[0], *(self._resized(maps, smooth[0]) for maps in smooth[1:])], 1)
        )
        return fused

    def _resized(self, maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        size = like.shape[2:]
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=self.align_corners)


class _Branches(nn.Module):
    def __init__(self, before: int, after: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.model_sequence = nn.ModuleList(
            _ConvNormAct(before, after, 1)
            if dilation == 1
            else _ConvNormAct(before, after, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        return [branch(maps) for branch in self.model_sequence]


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabv3, Chen et al. 2017) and a 1 x 1 convolution to the outputs."""

    includes_head = True
    last = "conv_seg"

    def __init__(
        self,
        channel_list: Sequence[int],
        outputs: int,
        *,
        dilations: Sequence[int],
        in_channels: int | None,
        channels: int,
        align_corners: bool,
        dropout: float,
        input_transform: Literal["resize_concat"] | None,
        in_index: int | Sequence[int],
    ) -> None:
        super().__init__()
        if input_transform not in (None, "resize_concat"):
            raise errors.InputError(f"ASPP: input_transform {input_transform!r} must be 'resize_concat' or omitted.")
        several = input_transform == "resize_concat"
        if isinstance(in_index, int) == several:
            raise errors.InputError(
                f"ASPP: in_index {in_index!r} must be a list with input_transform 'resize_concat', one number without."
            )
        self.indices = [in_index] if isinstance(in_index, int) else list(in_index)
        width = sum(entry(channel_list, index, who="ASPP", argument="in_index") for index in self.indices)
        if in_channels not in (None, width):
            raise errors.InputError(f"ASPP: in_channels {in_channels} differs from the features' {width}; omit it.")
        self.align_corners = align_corners
        self.out_channels = outputs
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), _ConvNormAct(width, channels, 1))
        self.aspp_modules = _Branches(width, channels, dilations)
        self.bottleneck = _ConvNormAct((len(dilations) + 1) * channels, channels, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        setattr(self, self.last, nn.Conv2d(channels, outputs, 1))

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, outputs, h, w] at the size of the (first) selected feature."""
        chosen = [features[index] for index in self.indices]
        maps = torch.cat([chosen[0], *(self._resized(item, chosen[0]) for item in chosen[1:])], 1)
        context = self._resized(self.image_pool(maps), maps)
        fused = self.bottleneck(torch.cat((context, *self.aspp_modules(maps)), 1))
        outputs: torch.Tensor = getattr(self, self.last)(self.dropout(fused))
        return outputs

    def _resized(self, maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        size = like.shape[2:]
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=self.align_corners)


class ASPPSegmentationHead(_Aspp):
    """DeepLabv3's head for segmentation; includes the head."""

    def __init__(
        self,
        channel_list: Sequence[int],
        num_classes: int,
        dilations: Sequence[int] = (1, 6, 12, 18),
        in_channels: int | None = None,
        channels: int = 256,
        align_corners: bool = False,
        head_dropout_ratio: float = 0.3,
        input_transform: Literal["resize_concat"] | None = None,
        in_index: int | Sequence[int] = -1,
    ) -> None:
        super().__init__(
            channel_list,
            num_classes,
            dilations=dilations,
            in_channels=in_channels,
            channels=channels,
            align_corners=align_corners,
            dropout=head_dropout_ratio,
            input_transform=input_transform,
            in_index=in_index,
        )


class ASPPRegressionHead(_Aspp):
    """DeepLabv3's head for regression; includes the head."""

    last = "conv_reg"

    def __init__(
        self,
        channel_list: Sequence[int],
        out_channels: int = 1,
        dilations: Sequence[int] = (1, 6, 12, 18),
        in_channels: int | None = None,
        channels: int = 256,
        align_corners: bool = False,
        head_dropout_ratio: float = 0.3,
        input_transform: Literal["resize_concat"] | None = None,
        in_index: int | Sequence[int] = -1,
    ) -> None:
        super().__init__(
            channel_list,
            out_channels,
            dilations=dilations,
            in_channels=in_channels,
            channels=channels,
            align_corners=align_corners,
            dropout=head_dropout_ratio,
            input_transform=input_transform,
            in_index=in_index,
        )


class UNetDecoder(nn.Module):
    """U-Net decoder: each block upsamples to the next finer map, concatenates it, and applies two convolutions.

    All maps of the pyramid are used, so the last block has no skip connection and keeps the finest map's size.
    Layout as in Ronneberger et al. 2015 and segmentation_models_pytorch.
    """

    includes_head = False

    def __init__(
        self,
        channel_list: Sequence[int],
        channels: Sequence[int],
        use_batchnorm: bool = True,
        attention_type: Literal["scse"] | None = None,
    ) -> None:
        super().__init__()
        if len(channels) != len(channel_list) or min(channels) < 1:
            raise errors.InputError(
                f"UNetDecoder: channels {list(channels)} must be {len(channel_list)} numbers of at least 1, one per "
                f"feature (the features have {list(channel_list)} channels)."
            )
        if attention_type not in (None, "scse"):
            raise errors.InputError(f"UNetDecoder: attention_type {attention_type!r} must be 'scse' or omitted.")
        self.out_channels = channels[-1]
        self.decoder = _Blocks(channel_list, channels, norm=use_batchnorm, attention=attention_type == "scse")
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, channels[-1], h, w] at the size of the first feature."""
        decoded: torch.Tensor = self.decoder(features)
        return decoded


class _Blocks(nn.Module):
    def __init__(self, features: Sequence[int], outputs: Sequence[int], *, norm: bool, attention: bool) -> None:
        super().__init__()
        inputs = [features[-1], *outputs[:-1]]
        skips = [*list(features[-2::-1]), 0]
        self.blocks = nn.ModuleList(
            _UpBlock(*widths, norm=norm, attention=attention) for widths in zip(inputs, skips, outputs, strict=True)
        )

    def forward(self, features: Features) -> torch.Tensor:
        coarse_first = features[::-1]
        decoded = coarse_first[0]
        for index, block in enumerate(self.blocks):
            skip = coarse_first[index + 1] if index + 1 < len(features) else None
            size = (features[0] if skip is None else skip).shape[2:]
            decoded = block(functional.interpolate(decoded, size=size, mode="nearest"), skip)
        return decoded


class _UpBlock(nn.Module):
    def __init__(self, before: int, skip: int, after: int, *, norm: bool, attention: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(before + skip, after, norm=norm)
        self.attention1 = _ScseAttention(before + skip) if attention else nn.Identity()
        self.conv2 = _convolution(after, after, norm=norm)
        self.attention2 = _ScseAttention(after) if attention else nn.Identity()

    def forward(self, maps: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        if skip is not None:
            maps = self.attention1(torch.cat((maps, skip), 1))
        decoded: torch.Tensor = self.attention2(self.conv2(self.conv1(maps)))
        return decoded


class _ScseAttention(nn.Module):
    """scSE (Roy et al. 2018), the sum of channel and spatial gates, named as in segmentation_models_pytorch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = _ScSE(channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self.attention(maps)
        return gated


class _ScSE(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 16, 1)
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = maps * self.cSE(maps) + maps * self.sSE(maps)
        return gated


def _convolution(before: int, after: int, *, norm: bool) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=not norm)
    return nn.Sequential(convolution, nn.BatchNorm2d(after) if norm else nn.Identity(), nn.ReLU(inplace=True))


class SatMAEHead(nn.Module):
    """Tokens [B, prefix + h * w, C] of one layer -> map [B, in_chans, h * patch_size, w * patch_size].

    A linear layer to `output_embed_dim`, fixed sine-cosine positions (He et al. 2022, section A.1), `depth`
    transformer blocks, normalisation, and a linear layer to the patch's pixels. No tokens are masked.
    """

    includes_head = False
    tokens: feats.PatchTokens | None = None
    """layout of the backbone's tokens, if known; set by the builder"""

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
        width = entry(channel_list, in_index, who="SatMAEHead", argument="in_index")
        self.in_index = in_index
        self.patch_size = patch_size
        self.out_channels = in_chans
        self.decoder_embed = nn.Linear(width, output_embed_dim, bias=bias)
        self.decoder_blocks = nn.ModuleList(
            _TransformerBlock(output_embed_dim, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(output_embed_dim)
        self.decoder_pred = nn.Linear(output_embed_dim, patch_size**2 * in_chans)

    def forward(self, features: Features, image_size: feats.Size | None = None) -> torch.Tensor:
        """Return the pixels predicted from the tokens.

        Raises:
            EncoderError: maps instead of tokens, or tokens that do not fill a grid.
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
        """Arrange patches [B, h * w, p * p * C] (channels last) as an image [B, C, h * p, w * p]."""
        side = self.patch_size
        pixels = patches.reshape(-1, *grid, side, side, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        return pixels.reshape(-1, self.out_channels, grid[0] * side, grid[1] * side)


class _TransformerBlock(nn.Module):
    """A pre-norm transformer block with layers named as in timm."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        hidden = functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.mlp["fc2"](hidden)  # type: ignore[no-any-return]


class _SelfAttention(nn.Module):
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
    """Return fixed positions [h * w, width]: for each axis (column, then row) sines and cosines of x / 10000^(k/d).

    There are d = width / 4 frequencies per axis, as in MAE's `get_2d_sincos_pos_embed` (He et al. 2022).
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1).float()

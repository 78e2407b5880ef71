"""Backbones from timm: maps of its stages, or tokens of a transformer's layers."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import backbones
from genenc_core.factory import features as feats
from genenc_core.models.sources import timm_source

Output = Literal["maps", "tokens"]
_WEIGHT_OPTIONS = frozenset(("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"))


class TimmBackbone(nn.Module):
    """A timm model with `features_only`: one map per stage, in timm's layout."""

    def __init__(self, body: Any, *, inputs: feats.InputInfo | None) -> None:
        super().__init__()
        self.body = body
        self.inputs = inputs
        self.out_channels: list[int] = list(body.feature_info.channels())

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of [B, C, H, W]."""
        return list(self.body(images))


class TimmTokens(nn.Module):
    """A timm transformer: tokens [B, prefix + h * w, C] after each chosen layer, without the final norm."""

    def __init__(self, body: Any, *, indices: Sequence[int], inputs: feats.InputInfo | None) -> None:
        super().__init__()
        self.body = body
        self.indices = list(indices)
        self.inputs = inputs
        self.out_channels = [int(body.embed_dim)] * len(self.indices)
        patch = body.patch_embed.patch_size
        self.tokens = feats.PatchTokens(
            prefix=int(body.num_prefix_tokens),
            patch=(int(patch[0]), int(patch[1])),
            registers=timm_source.register_count(body),
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one token list per layer."""
        outputs = self.body.forward_intermediates(
            images,
            indices=self.indices,
            return_prefix_tokens=self.tokens.prefix > 0,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not self.tokens.prefix:
            return list(outputs)
        return [torch.cat((prefix, patches), 1) for patches, prefix in outputs]


class TimmBackbones:
    """The source `timm`; empty if timm is not installed."""

    def build(self, name: str, output: Output = "maps", pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """Build a backbone; `kwargs` are passed to `timm.create_model` (in_chans, out_indices, img_size ...).

        `in_channels` and `bands` are `in_chans` too, as TerraTorch's own backbones have them.

        `output` "tokens" returns a transformer's token lists, of all layers or of `out_indices`.

        Raises:
            InputError: timm rejects the arguments, cannot get its weights, or the model has no such features.
        """
        if output not in ("maps", "tokens"):
            raise errors.InputError(f"backbone_output {output!r} must be 'maps' or 'tokens'.")
        _refuse_weights(kwargs)
        kwargs = backbones.with_in_chans(kwargs)
        inputs = _inputs(name, kwargs)
        if output == "tokens":
            indices = kwargs.pop("out_indices", None)
            body = _create(name, pretrained=pretrained, num_classes=0, global_pool="", **kwargs)
            return TimmTokens(body, indices=_layers(name, body, indices), inputs=inputs)
        return TimmBackbone(_create(name, pretrained=pretrained, features_only=True, **kwargs), inputs=inputs)

    def signature(self, name: str) -> inspect.Signature | None:  # noqa: ARG002
        """Return None, since the parameters depend on the architecture."""
        return None

    def includes_head(self, name: str) -> bool:  # noqa: ARG002
        """Return False, since this is not a decoder."""
        return False

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and timm_source.knows(name)

    def __iter__(self) -> Iterator[str]:
        return iter(timm_source.names())

    def __len__(self) -> int:
        return len(timm_source.names())


def _refuse_weights(options: dict[str, Any]) -> None:
    """Reject timm's own weight options, which load any file or URL, and unpickle it in older versions."""
    stray = sorted(_WEIGHT_OPTIONS & options.keys())
    if stray:
        raise errors.InputError(f"backbone_{stray[0]} is not supported: give weights with --weights.")


def _create(name: str, *, pretrained: bool, **options: Any) -> Any:
    import timm

    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError, IndexError) as error:
        remedy = (
            " Connect to the network, give a downloaded file with --weights FILE, or use random weights with random:0."
            if pretrained
            else ""
        )
        raise errors.InputError(
            f"timm cannot build the backbone {name!r} with {options}: {errors.reason(error)}.{remedy}"
        ) from error
    if pretrained and options.get("img_size"):
        size = _sides(options["img_size"])
        timm_source.rearrange_positions(getattr(model, "model", model), name, size, loaded_by_timm=True)
    return model


def _layers(name: str, body: Any, indices: Sequence[int] | None) -> list[int]:
    depth = len(getattr(body, "blocks", ()))
    if not depth or not hasattr(body, "num_prefix_tokens") or not hasattr(body, "forward_intermediates"):
        raise errors.InputError(f"timm's {name!r} is not a plain transformer; use backbone_output 'maps'.")
    wanted = list(range(depth)) if indices is None else list(indices)
    if not wanted or any(not -depth <= index < depth for index in wanted):
        raise errors.InputError(f"backbone_out_indices {wanted} of {name!r} must be from {-depth} to {depth - 1}.")
    if sorted(wanted) != wanted or len(set(wanted)) != len(wanted) or wanted[0] < 0:
        raise errors.InputError(
            f"backbone_out_indices {wanted} must be ascending, from 0; for another order add the neck SelectIndices."
        )
    return wanted


def _inputs(name: str, options: dict[str, Any]) -> feats.InputInfo | None:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    _, height, width = config.input_size
    size = options.get("img_size") or (height, width)
    side = _sides(size)
    return feats.InputInfo(
        channels=int(options.get("in_chans", 3)),
        height=side[0],
        width=side[1],
        mean=tuple(float(value) for value in config.mean),
        std=tuple(float(value) for value in config.std),
        interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
        resize_short=math.floor(min(side) / config.crop_pct)
        if config.crop_pct and config.crop_mode == "center"
        else None,
    )


def _sides(size: Any) -> tuple[int, int]:
    """Return the height and width of timm's `img_size`."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)

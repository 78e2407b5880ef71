"""Backbones from genenc's built-in encoders and from user code (`package.module:factory`)."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import features as feats
from genenc_core.factory import registry
from genenc_core.models import user_code
from genenc_core.models.encoder_module import Parts
from genenc_core.models.sources import builtin_source
from genenc_core.models.weights import WeightsChoice

CHANNELS, _BANDS = ("in_chans", "in_channels"), ("bands", "model_bands")
"""Arguments by which a backbone is told its channels, as a number or by their names."""


def channels_in(options: Mapping[str, Any]) -> int | None:
    """Return the channels that a backbone's arguments name: `bands`, `in_chans` or `in_channels`; None if none."""
    bands = options.get("bands") or options.get("model_bands")
    if isinstance(bands, list | tuple):
        return len(bands)
    return next((int(options[name]) for name in CHANNELS if isinstance(options.get(name), int)), None)


def with_in_chans(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a library backbone's arguments with `in_chans` for the bands or channels among them."""
    count = channels_in(options)
    if count is None:
        return dict(options)
    rest = {name: value for name, value in options.items() if name not in (*CHANNELS, *_BANDS)}
    return {**rest, "in_chans": count}


def input_info(parts: Parts) -> feats.InputInfo:
    """Return the input that a source's model expects."""
    size = parts.preprocessing
    return feats.InputInfo(
        channels=size.channel_count,
        height=size.height,
        width=size.width,
        mean=parts.mean,
        std=parts.std,
        interpolation=size.interpolation,
        resize_short=size.resize_short,
    )


class PartsBackbone(nn.Module):
    """A backbone from a built-in encoder, with its output slots as features."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.body = parts.trunk
        size = parts.preprocessing
        self.inputs = input_info(parts)
        self.out_channels = measured_channels(self, (3, size.height, size.width))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of [B, 3, H, W]."""
        return feats.as_list(self.body(images))


class BuiltinBackbones(registry.Registry):
    """The source `genenc`: backbones registered by users, and built-in encoders."""

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Build a registered backbone, or the encoder `name` (image_size as (height, width), pretrained)."""
        if name in self._constructors:
            return super().build(name, *args, **kwargs)
        choice = random_or_pretrained(bool(kwargs.get("pretrained", False)))
        return PartsBackbone(builtin_source.build(name, choice, as_size(kwargs.get("image_size"))))

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the arguments of `build`."""
        if name in self._constructors:
            return super().signature(name)
        return keywords("pretrained", "image_size")

    def __contains__(self, name: object) -> bool:
        return name in self._constructors or name in builtin_source.names()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._constructors, *builtin_source.names()}))

    def __len__(self) -> int:
        return len({*self._constructors, *builtin_source.names()})


class PythonBackbones:
    """The source `python`: any `package.module:factory` of a module with `out_channels` that returns a list."""

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> nn.Module:
        """Import the factory and call it.

        Raises:
            InputError: it cannot be imported, fails, or does not return a module.
        """
        try:
            factory = _factory(name)
            with user_code.restored(name):
                module = factory(*args, **kwargs)
        except errors.GenencError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise errors.InputError(
                f"the backbone factory {name!r} failed: {type(error).__name__}: {errors.reason(error)}."
            ) from error
        if not isinstance(module, nn.Module):
            raise errors.InputError(
                f"the backbone factory {name!r} returned a {type(module).__name__}, not a torch module."
            )
        return module

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the factory's parameters."""
        try:
            return inspect.signature(_factory(name))
        except (TypeError, ValueError):
            return None

    def includes_head(self, name: str) -> bool:  # noqa: ARG002
        """Return False, since this is not a decoder."""
        return False

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and ":" in name

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def measured_channels(backbone: Callable[[torch.Tensor], Any], shape: tuple[int, int, int]) -> list[int]:
    """Return the channels of a backbone's features, measured with two random images of this shape.

    Raises:
        InputError: it does not accept them.
    """
    modes = {module: module.training for module in backbone.modules()} if isinstance(backbone, nn.Module) else {}
    images = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            return [feats.channels_of(feature) for feature in feats.as_list(backbone(images))]
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise errors.InputError(
            f"the backbone does not accept images of {list(shape)}, so its channels cannot be measured: "
            f"{errors.reason(error)}. Give it an attribute out_channels, one number per feature."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def random_or_pretrained(pretrained: bool) -> WeightsChoice:
    """Return pretrained weights, or random ones with a seed drawn from torch's default generator."""
    if pretrained:
        return WeightsChoice(kind="pretrained")
    return WeightsChoice(kind="random", seed=int(torch.randint(2**62, ())))


def as_size(given: Any) -> feats.Size | None:
    """Parse an image size: a number, or height and width.

    Raises:
        InputError: not a valid size.
    """
    if given is None:
        return None
    sides = [given, given] if isinstance(given, int) else list(given) if isinstance(given, list | tuple) else []
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise errors.InputError(f"image size {given!r} must be a number of pixels, or [height, width].")
    return sides[0], sides[1]


def keywords(*names: str) -> inspect.Signature:
    """Return a signature of optional keywords."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([inspect.Parameter(name, kind, default=None) for name in names])


def _factory(name: str) -> Callable[..., Any]:
    try:
        with user_code.restored(name):
            loaded = user_code.load_object(name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything on import
        raise errors.InputError(
            f"cannot find the backbone factory {name!r}: {type(error).__name__}: {errors.reason(error)}. Give "
            f"package.module:factory, importable from the working directory ({Path.cwd()}) or installed."
        ) from error
    if not callable(loaded):
        raise errors.InputError(f"the backbone factory {name!r} is a {type(loaded).__name__}, which is not callable.")
    factory: Callable[..., Any] = loaded
    return factory

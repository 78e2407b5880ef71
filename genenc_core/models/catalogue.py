"""Every encoder that can be had by name, with what its source declares of it: nothing is built."""

import dataclasses
from collections.abc import Iterator

from genenc_core.choices import ZooSource
from genenc_core.models import builtin_source, timm_source, torchvision_source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A name as `--model` takes it, its source, and the input size (height, width) of its pretrained configuration."""

    name: str
    source: ZooSource
    input_size: tuple[int, int] | None


def listed() -> Iterator[Listed]:
    """Yield genenc's own encoders, then torchvision's, then timm's; a name that an earlier one has gets a prefix."""
    own = set(builtin_source.names())
    for name in builtin_source.names():
        yield Listed(name=name, source="genenc", input_size=builtin_source.native_size(name))
    zoo = torchvision_source.names()
    for name in zoo:
        shown = f"torchvision/{name}" if name in own else name
        yield Listed(name=shown, source="torchvision", input_size=_torchvision_size(name))
    taken = own | set(zoo)
    for name in timm_source.names():
        shown = f"timm/{name}" if name in taken else name
        yield Listed(name=shown, source="timm", input_size=_timm_size(name))


def _torchvision_size(name: str) -> tuple[int, int]:
    from torchvision import models as zoo

    side = int(zoo.get_model_weights(name).DEFAULT.transforms().crop_size[0])
    return side, side


def _timm_size(name: str) -> tuple[int, int] | None:
    import timm

    config = timm.models.get_pretrained_cfg(name)
    return None if config is None else (int(config.input_size[1]), int(config.input_size[2]))

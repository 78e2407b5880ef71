"""Built-in encoders by name, which no other source provides in the required form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from genenc_core import errors
from genenc_core.models.encoder_module import Parts
from genenc_core.models.sources import channel_loading
from genenc_core.models.weights import WeightsChoice
from genenc_core.models.zoo import darknet, deepseek, sam, yolo_tiny

Builder = Callable[[str, WeightsChoice, tuple[int, int] | None], Parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class _BuiltIn:
    build: Builder
    size: tuple[int, int]


def names() -> list[str]:
    """Return the names of all built-in encoders."""
    return sorted(_ENCODERS)


def native_size(name: str) -> tuple[int, int]:
    """Return the default input size (height, width) of an encoder."""
    return _ENCODERS[name].size


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None, channels: int | None = None) -> Parts:
    """Build the encoder `name` for `image_size` (height, width) or its default size; of RGB only."""
    channel_loading.refuse(name, channels)
    return _ENCODERS[name].build(name, choice, image_size)


def _refuse_general(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:  # noqa: ARG001
    raise errors.InputError(
        f"{name!r} runs an exported file, so there is no model to build: use genenc extract --model {name} "
        "--weights FILE.pt --trust."
    )


_ENCODERS: Mapping[str, _BuiltIn] = {
    **dict.fromkeys(sam.ARCHITECTURES, _BuiltIn(build=sam.build, size=sam.NATIVE)),
    "deepseek_sam": _BuiltIn(build=deepseek.build, size=sam.NATIVE),
    **dict.fromkeys(darknet.MAPS, _BuiltIn(build=darknet.build_maps, size=darknet.NATIVE)),
    **dict.fromkeys(darknet.PYRAMIDS, _BuiltIn(build=darknet.build_pyramid, size=darknet.NATIVE)),
    "yolov3_tiny": _BuiltIn(build=yolo_tiny.build, size=yolo_tiny.NATIVE),
    "general_encoder": _BuiltIn(build=_refuse_general, size=(224, 224)),
}

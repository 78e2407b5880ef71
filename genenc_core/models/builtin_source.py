"""genenc's own encoders by name: those that no other source has as they should be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from genenc_core import errors
from genenc_core.models import deepseek, multiscale, sam, yolo_tiny
from genenc_core.models.encoder import Parts
from genenc_core.models.weights import WeightsChoice

Builder = Callable[[str, WeightsChoice, tuple[int, int] | None], Parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    build: Builder
    size: tuple[int, int]


def names() -> list[str]:
    """Return the names of all built-in encoders."""
    return sorted(_OWN)


def native_size(name: str) -> tuple[int, int]:
    """Return the input size (height, width) that an encoder has unless asked otherwise."""
    return _OWN[name].size


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build the encoder `name`, at `image_size` (height, width) or its own."""
    return _OWN[name].build(name, choice, image_size)


def _refuse_general(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:  # noqa: ARG001
    raise errors.InputError(
        f"{name!r} runs a file that is exported already, so there is no model to build: genenc extract --model {name} "
        "--weights FILE.pt --trust."
    )


_OWN: Mapping[str, _Own] = {
    **dict.fromkeys(sam.ARCHITECTURES, _Own(build=sam.build, size=sam.NATIVE)),
    "deepseek_sam": _Own(build=deepseek.build, size=sam.NATIVE),
    **dict.fromkeys(multiscale.MAPS, _Own(build=multiscale.build_maps, size=multiscale.NATIVE)),
    **dict.fromkeys(multiscale.PYRAMIDS, _Own(build=multiscale.build_pyramid, size=multiscale.NATIVE)),
    "yolov3_tiny": _Own(build=yolo_tiny.build, size=yolo_tiny.NATIVE),
    "general_encoder": _Own(build=_refuse_general, size=(224, 224)),
}

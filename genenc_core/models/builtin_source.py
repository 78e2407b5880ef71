"""genenc's own encoders by name: those that no other source has as they should be."""

from collections.abc import Callable, Mapping

from genenc_core.models import deepseek, multiscale, sam, yolo_tiny
from genenc_core.models.encoder import Parts
from genenc_core.models.weights import WeightsChoice

Builder = Callable[[str, WeightsChoice, tuple[int, int] | None], Parts]


def names() -> list[str]:
    """Return the names of all built-in encoders."""
    return sorted(_BUILDERS)


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build the encoder `name`, at `image_size` (height, width) or its own."""
    return _BUILDERS[name](name, choice, image_size)


_BUILDERS: Mapping[str, Builder] = {
    **dict.fromkeys(sam.ARCHITECTURES, sam.build),
    "deepseek_sam": deepseek.build,
    **dict.fromkeys(multiscale.MAPS, multiscale.build_maps),
    **dict.fromkeys(multiscale.PYRAMIDS, multiscale.build_pyramid),
    "yolov3_tiny": yolo_tiny.build,
}

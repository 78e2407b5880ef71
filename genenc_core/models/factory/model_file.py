"""A model file: the arguments of `build_model` as TOML or YAML, and the encoder that it describes."""

from pathlib import Path

from genenc_core import errors
from genenc_core.models.encoder import Parts
from genenc_core.models.weights import WeightsChoice


def read(path: Path) -> str:
    """Return the content of a model file as canonical JSON text (sorted keys).

    Raises:
        InputError: the file cannot be read, or does not describe a model.
    """
    raise errors.InputError(f"model file {str(path)!r} cannot be read yet")


def build(arguments: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build what `read` returned."""
    raise errors.InputError("factory models cannot be built yet")

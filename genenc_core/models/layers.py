"""Outputs of a model's inner layers as slots."""

from collections.abc import Sequence

from genenc_core import errors
from genenc_core.models.encoder import Parts


def tapped(parts: Parts, wanted: Sequence[str]) -> Parts:
    """Return `parts` with a trunk that gives one slot per layer of `wanted`."""
    raise errors.InputError(f"layers {', '.join(wanted)} cannot be chosen yet")

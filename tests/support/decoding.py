"""Decode helpers that return pixel arrays or failure reasons."""

import numpy as np
import pytest
import torch

from genenc_core.images.decode import decode, decoded


def pixels_of(data: bytes) -> np.ndarray:
    """Decode to [H, W, 3] and check the invariants of every decoded image."""
    image = decode.decode_image(data)
    assert image.pixels.dtype == torch.uint8
    assert image.pixels.shape[0] == 3
    return image.pixels.permute(1, 2, 0).numpy()


def reason_of(data: bytes) -> str:
    with pytest.raises(decoded.ImageUnreadable) as caught:
        decode.decode_image(data)
    reason = str(caught.value)
    assert reason
    assert "\n" not in reason
    assert len(reason) < 250
    return reason

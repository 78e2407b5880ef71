"""Rules for values of arrays, and selections of frames by time."""

import numpy as np
import pytest

from genenc_core.images.containers import arrays
from genenc_core.images.containers.frames import Frames


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_alpha_that_is_zero_everywhere_does_not_count(kind: str) -> None:
    white = 1.0 if kind == "float32" else np.iinfo(kind).max
    colours = np.array([[0.2, 0.4, 0.6], [1.0, 0.8, 0.0]])
    blank, half = (np.dstack([colours[None], np.full((1, 2), alpha)]) * white for alpha in (0.0, 1.0))
    half[0, 0, 3] = 0
    np.testing.assert_array_equal(arrays.rgb(blank.astype(kind)), np.rint(colours * 255)[None])
    np.testing.assert_array_equal(arrays.rgb(half.astype(kind)), [[[0, 0, 0], [255, 204, 0]]])


@pytest.mark.parametrize(
    ("rate", "per_second", "expected"),
    [
        (1000, 100, range(0, 60, 10)),
        (1000, 500, range(0, 60, 2)),
        (2000, 250, range(0, 60, 8)),
        (500, 100, range(0, 60, 5)),
        (30, 5, range(0, 60, 6)),
    ],
)
def test_the_first_frame_of_every_step(rate: int, per_second: int, expected: range) -> None:
    exact = [index / rate for index in range(60)]
    assert list(Frames.parse(f"{per_second}/s").of(60, exact)) == list(expected)


def test_times_that_a_format_rounds_move_no_frame() -> None:
    rounded = [round(index * 1000 / 30) / 1000 for index in range(60)]
    assert list(Frames.parse("10/s").of(60, rounded)) == list(range(0, 60, 3))

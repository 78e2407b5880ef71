"""Masks as runs of pixels: every form the same pixels, and those of pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genenc_core.images.labels.masks import Mask

# A 4 x 3 image (height x width) with an L of pixels; counted down the columns.
PIXELS = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)
COUNTS = [0, 3, 3, 2, 3, 1]


@st.composite
def pixels(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    seed = draw(st.integers(0, 10**6))
    return np.random.default_rng(seed).random((height, width)) < draw(st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)))


def test_run_lengths_by_hand() -> None:
    mask = Mask.from_pixels(PIXELS)
    assert mask.counts == COUNTS
    assert (Mask.from_counts(COUNTS, (4, 3)).pixels() == PIXELS).all()
    assert Mask.from_text(mask.text, (4, 3)).counts == COUNTS
    assert (mask.area, mask.box) == (6, (0.0, 0.0, 3.0, 4.0))


def test_compressed_run_lengths_of_coco() -> None:
    # What pycocotools.mask.encode makes of these pixels.
    assert Mask.from_pixels(PIXELS).text == "033O0O"
    long = np.zeros((100, 90), bool)
    long[20:70, 10:13] = True
    assert Mask.from_pixels(long).text == "lo0b1b1000P`7"
    assert (Mask.from_text("lo0b1b1000P`7", (100, 90)).pixels() == long).all()


@settings(deadline=None)
@given(pixels())
def test_every_form_gives_the_same_pixels(inside: np.ndarray) -> None:
    mask = Mask.from_pixels(inside)
    size = (inside.shape[0], inside.shape[1])
    assert (mask.pixels() == inside).all()
    for again in (Mask.from_counts(mask.counts, size), Mask.from_text(mask.text, size)):
        assert (again.pixels() == inside).all()
        assert again.area == inside.sum()
    columns, tops, bottoms = mask.pieces()
    drawn = np.zeros_like(inside)
    for column, top, bottom in zip(columns, tops, bottoms, strict=True):
        assert not drawn[top:bottom, column].any()
        drawn[top:bottom, column] = True
    assert (drawn == inside).all()
    if inside.any():
        rows, columns = np.nonzero(inside)
        assert mask.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.booleans())
def test_everything_is_that_of_pycocotools(seed: int, whole: bool) -> None:
    theirs = pytest.importorskip("pycocotools.mask")
    drawn = np.random.default_rng(seed)
    height, width = drawn.integers(1, 40, 2).tolist()
    polygons = [drawn.uniform(-4, 44, (drawn.integers(3, 8), 2)) for _ in range(drawn.integers(1, 3))]
    polygons = [np.round(each * 2) / 2 for each in polygons] if whole else polygons
    runs = theirs.merge(theirs.frPyObjects([each.reshape(-1).tolist() for each in polygons], height, width))
    mask = Mask.from_polygons(polygons, (height, width))
    assert (mask.pixels() == theirs.decode(runs).astype(bool)).all()
    assert mask.area == int(theirs.area(runs))
    assert Mask.from_text(runs["counts"], (height, width)).text == runs["counts"].decode()


def test_a_polygon_by_hand() -> None:
    square = Mask.from_polygons([np.array([[1, 1], [4, 1], [4, 3], [1, 3]], float)], (5, 6))
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    assert (square.pixels() == expected).all()
    beyond = Mask.from_polygons([np.array([[-9, -9], [99, -9], [99, 99], [-9, 99]], float)], (5, 6))
    assert beyond.area == 30
    both = Mask.from_polygons(
        [np.array([[0, 0], [2, 0], [2, 2], [0, 2]]), np.array([[1, 1], [3, 1], [3, 3], [1, 3]])], (5, 6)
    )
    assert both.area == 4 + 4 - 1
    assert not Mask.from_polygons([np.array([[9, 9], [10, 9], [10, 10]], float)], (5, 6)).area


@pytest.mark.parametrize(
    ("counts", "word"),
    [([0, 3, 3], "add up to 6 pixels, not to the 12 of 3 x 4"), ([13, -1], "add up to"), ([], "add up to 0")],
)
def test_run_lengths_of_another_size_are_refused(counts: list[int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Mask.from_counts(counts, (4, 3))


@pytest.mark.parametrize(
    ("text", "word"), [("0\x10", "none of COCO's"), ("0`", "in the middle"), ("o" * 20 + "0", "too large")]
)
def test_damaged_text_is_refused(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Mask.from_text(text, (4, 3))


def test_an_outline_is_the_edge_between_inside_and_outside() -> None:
    assert len(Mask.from_pixels(np.ones((2, 3), bool)).outline()) == 10
    assert not Mask.from_pixels(np.zeros((2, 3), bool)).outline()

"""An input size that was given as width x height is named; other sizes are the user's own."""

import warnings
from pathlib import Path

import pytest
from PIL import Image

from genenc_core.images.sources import image_source, input_size_check, manifest


@pytest.mark.parametrize(
    ("size", "orientation", "told"),
    [
        ((64, 48), 1, True),
        ((48, 64), 1, False),
        ((48, 48), 1, False),
        ((64, 47), 1, False),
        ((48, 64), 6, True),  # shown upright: 48 wide, 64 high
    ],
)
def test_only_a_turned_size_is_told(size: tuple[int, int], orientation: int, told: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "a.jpg", exif=exif)
    listed = manifest.write_manifest(tmp_path / "m.parquet", image_source.open_source(str(tmp_path / "images")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        input_size_check.check(listed, "--canvas", size)
    messages = [str(one.message) for one in caught if issubclass(one.category, input_size_check.TurnedSize)]
    assert len(messages) == told
    assert all(f"--canvas {size[0]}x{size[1]} is height x width" in text for text in messages)

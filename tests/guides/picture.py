"""Draws what a run stores of one image: the image with its points, the cells that the model sees, the vectors.

Run: genenc demo && python tests/guides/picture.py genenc-demo/run genenc_core/images/points.png
"""

import argparse
from pathlib import Path

import numpy as np
import xarray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from genenc_core.encoding.cells import Cells
from genenc_core.run.folder import RunFolder

COLOURS = ((230, 60, 60), (40, 150, 60), (50, 100, 230), (220, 130, 0), (150, 60, 200), (0, 150, 160))
INK, FAINT, PAPER = (40, 40, 40), (120, 120, 120), (255, 255, 255)
SIDE, GAP, HEAD = 300, 24, 46
STRIP, SHOWN = 460, 64
"""Pixels of a vector's strip, and how many of its channels are drawn."""


def draw(run: Path, row: int = 0) -> Image.Image:
    """Return the picture of one row of a run that has points, `features` and `probes`."""
    folder = RunFolder(run)
    stored = xarray.open_zarr(run / "features.zarr", consolidated=False).isel(image=row).load()
    with Image.open(Path(folder.manifest.root) / str(stored.path.values)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    points = np.stack([stored.point_x.values, stored.point_y.values], -1)
    names = [str(name) for name in stored.point.values]
    page = Image.new("RGB", (3 * GAP + 2 * SIDE + GAP + STRIP + 130, HEAD + SIDE + GAP), PAPER)
    pen = ImageDraw.Draw(page)
    _image(page, pen, image, points)
    _cells(page, pen, folder, image, stored, points)
    _vectors(page, pen, stored, names)
    return page


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _title(pen: ImageDraw.ImageDraw, left: int, words: str, small: str) -> None:
    pen.text((left, 6), words, fill=INK, font=_font(15))
    pen.text((left, 26), small, fill=FAINT, font=_font(12))


def _mark(pen: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, int, int]) -> None:
    pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=PAPER, width=1)


def _image(page: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image, points: np.ndarray) -> None:
    """Draw the source image and its labelled points, in source pixels."""
    scale = SIDE / max(image.size)
    shown = image.resize((round(image.width * scale), round(image.height * scale)))
    top = HEAD + (SIDE - shown.height) // 2
    page.paste(shown, (GAP, top))
    for colour, (x, y) in zip(COLOURS, points, strict=False):
        if np.isfinite(x + y):
            _mark(pen, GAP + x * scale, top + y * scale, colour)
    _title(pen, GAP, "image and labels", f"{image.width} x {image.height} pixels")


def _cells(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    folder: RunFolder,
    image: Image.Image,
    stored: xarray.Dataset,
    points: np.ndarray,
) -> None:
    """Draw what the model sees, by the stored affine, and the cells of its map; those that hold a point are filled."""
    left, size = 2 * GAP + SIDE, folder.preprocessing
    scale = np.array([SIDE / size.width, SIDE / size.height])
    affine = stored.image_affine.values
    zoom, offset = affine[:2], affine[2:]
    view = Image.new("RGB", (SIDE, SIDE))
    fitted = image.resize(tuple(round(side) for side in np.array(image.size) * zoom * scale))
    view.paste(fitted, tuple(round(place) for place in offset * scale))
    page.paste(view, (left, HEAD))
    (cells, *_) = [Cells.from_json(each) for each in folder.identity["cells"].values()]
    stride, first = np.array(cells.stride[::-1]), np.array(cells.first[::-1])
    overlay = ImageDraw.Draw(page, "RGBA")
    for colour, point in zip(COLOURS, points, strict=False):
        if np.isfinite(point).all():
            begin = np.round((point * zoom + offset - first) / stride) * stride + first - stride / 2
            corners = np.clip(np.concatenate([begin, begin + stride]), 0, [size.width, size.height] * 2)
            corners = corners * np.tile(scale, 2) + np.tile([left, HEAD], 2)
            overlay.rectangle(tuple(corners), fill=(*colour, 90))
    edges = first[0] - stride[0] / 2
    for at in np.arange(edges, size.width + 1, stride[0]) * scale[0]:
        overlay.line((left + at, HEAD, left + at, HEAD + SIDE), fill=(255, 255, 255, 110))
    for at in np.arange(first[1] - stride[1] / 2, size.height + 1, stride[1]) * scale[1]:
        overlay.line((left, HEAD + at, left + SIDE, HEAD + at), fill=(255, 255, 255, 110))
    for colour, point in zip(COLOURS, points, strict=False):
        if np.isfinite(point).all():
            _mark(pen, *(np.array([left, HEAD]) + (point * zoom + offset) * scale), colour)
    words = f"fit {size.fit} to {size.width} x {size.height}, cells of {stride[0]:g} pixels"
    _title(pen, left, "what the model sees", words)


def _vectors(page: Image.Image, pen: ImageDraw.ImageDraw, stored: xarray.Dataset, names: list[str]) -> None:
    """Draw the first channels of the image's vector and of each point's, dark where they are large."""
    left = 3 * GAP + 2 * SIDE
    vectors = [stored.features.values, *stored.probes.values]
    labels = [("features", INK), *zip(names, COLOURS, strict=False)]
    height = SIDE // (len(vectors) + 1)
    for place, (vector, (name, colour)) in enumerate(zip(vectors, labels, strict=False)):
        top = HEAD + place * height + (height // 2 if place else 0)
        pen.text((left, top + 8), name, fill=colour, font=_font(13))
        if not np.isfinite(vector).all():
            pen.text((left + 110, top + 8), "no label: NaN, point_status 4", fill=FAINT, font=_font(13))
            continue
        shown = vector[:SHOWN].astype(np.float32)
        spread = float(np.abs(shown).max()) or 1.0
        grey = 255 - np.clip(np.abs(shown) / spread, 0, 1) * 225
        strip = Image.fromarray(grey.astype(np.uint8)[None]).resize((STRIP, height - 14), Image.Resampling.NEAREST)
        page.paste(strip.convert("RGB"), (left + 110, top))
    channels = stored.features.shape[0]
    words = f"the first {min(SHOWN, channels)} of {channels} channels, each vector scaled by its largest value"
    _title(pen, left, "what is stored: features and probes", words)


def main() -> None:
    """Draw one row of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--row", type=int, default=0)
    given = parser.parse_args()
    draw(given.run, given.row).save(given.out, optimize=True)


if __name__ == "__main__":
    main()

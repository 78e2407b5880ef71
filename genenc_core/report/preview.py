"""Pictures of one image of a run as PNG files: its map in colours, its channels, what is like the cell at a point."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genenc_core import errors, statuses, text
from genenc_core.report import gallery, maps, pictures, subject
from genenc_core.report.parameters import PreviewParameters
from genenc_core.store.backends.objects import is_remote
from genenc_core.store.store_keys import STORE_FILE
from genenc_core.stored.rows import Stored

SIDE: Final = 448
"""Longest side of a picture, in pixels."""
_TILE: Final = 160
_NEIGHBOURS: Final = 24
"""Other images that colours and bounds of channels are fitted to as well, so that previews of a run are comparable."""
_OUT: Final = "preview"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Pictures of one image, by name of the file."""

    row: int
    image: str
    pictures: dict[str, Image.Image] = dataclasses.field(repr=False)
    notes: tuple[str, ...]
    """What is not shown, and why."""


def make(given: PreviewParameters) -> Preview:
    """Draw the pictures of an image; nothing is written.

    Raises:
        InputError: no such image, it has no features, no map is stored, or a point is not on it.
        StoreError: the run is damaged.
    """
    source = subject.open_rows(given.source, given.version)
    product = maps.require_map(source, given.maps)
    row = _row(source, given)
    rows = np.unique(np.append(gallery.spread(source.ok, _NEIGHBOURS), row))
    at = int(np.searchsorted(rows, row))
    where, placed = maps.Geometry.of(source, product), maps.place(source, rows)
    cells = maps.channels_last(source.read(product.name, rows)).astype(np.float32)
    valid = maps.in_view(where, placed.views) & np.isfinite(cells).all(axis=-1)
    name = source.names(np.array([row]))[0]
    points = _points(source, placed.points[at], row, given.at)
    found = pictures.load(source, np.array([row]))
    pixels = found.pixels.get(row)
    notes = [] if pixels is not None else [f"the image is not shown: {found.missing.get(row, 'not read')}"]
    base = None if pixels is None else maps.shown_image(pixels, where.shown_size(SIDE))
    layer = maps.Layer(where=where, cells=cells[at], valid=valid[at], view=placed.views[at], base=base)
    made = dict(_drawn(layer, maps.Colours.of(cells[valid]), points))
    made["channels.png"] = _channels(layer, cells[valid], given.channels)
    if not points:
        notes.append("no point is in view: give --at x,y to compare the cell at a place")
    return Preview(row=row, image=name, pictures=made, notes=tuple(notes))


def _row(source: Stored, given: PreviewParameters) -> int:
    row = given.row if given.row is not None else source.find(str(given.image))
    if row >= len(source):
        raise errors.InputError(f"--row {row} is out of range: {source.place!r} has rows 0 to {len(source) - 1}")
    state = int(source.status[row])
    if state != statuses.OK:
        name = source.names(np.array([row]))[0]
        why = "is not stored yet" if state == statuses.NOT_WRITTEN else "is unreadable: genenc status says why"
        raise errors.InputError(f"row {row} ({name!r}) {why}; give another image")
    return row


def _points(source: Stored, own: np.ndarray, row: int, at: str | None) -> dict[str, tuple[float, float]]:
    """Return points by name, in pixels of the model's input."""
    if at is None:
        there = np.isfinite(own).all(axis=1)
        return {name: (float(own[k, 0]), float(own[k, 1])) for k, name in enumerate(source.points) if there[k]}
    match = re.fullmatch(r"\s*(-?[0-9]+(?:\.[0-9]*)?)\s*,\s*(-?[0-9]+(?:\.[0-9]*)?)\s*", at)
    if match is None:
        raise errors.InputError(f"--at {at!r} is not x,y in pixels, such as 120,64.5")
    x, y = float(match[1]), float(match[2])
    rows = np.array([row])
    width, height = (int(source.read(name, rows)[0]) for name in ("image_width", "image_height"))
    if not (0 <= x <= width and 0 <= y <= height):
        raise errors.InputError(f"--at {at!r} is not on the image, which has {width} x {height} pixels")
    across, down, left, top = source.read("image_affine", rows)[0].tolist()
    moved = x * across + left, y * down + top
    size = source.model_run.preprocessing.width, source.model_run.preprocessing.height
    if not all(0 <= value <= side for value, side in zip(moved, size, strict=True)):
        fit = source.model_run.preprocessing.fit
        raise errors.InputError(f"--at {at!r} is not in what the model sees of the image (fit {fit})")
    return {f"{x:g}, {y:g}": moved}


def _drawn(
    layer: maps.Layer, colours: maps.Colours, points: dict[str, tuple[float, float]]
) -> Iterator[tuple[str, Image.Image]]:
    places = list(points.values())
    if layer.base is not None:
        yield "image.png", maps.marked(layer.base, places, layer.where)
    rgb = colours.rgb(layer.cells)
    yield "pca.png", Image.fromarray(layer.over(rgb))
    for number, (name, xy) in enumerate(points.items()):
        row, column = layer.where.cell_of(np.array(xy))
        similar = maps.cosine(layer.cells[row, column], layer.cells)
        seen = similar[layer.valid]
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
        drawn = maps.marked(layer.over(maps.viridis(similar, low, high), 0.7), [xy], layer.where, number)
        yield f"similarity-{_file_name(name, number)}.png", _titled(drawn, f"{name}: cosine {low:.2f} to {high:.2f}")


def _file_name(name: str, number: int) -> str:
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:60]
    return words or str(number)


def _channels(layer: maps.Layer, cells: np.ndarray, count: int) -> Image.Image:
    """Return the channels that vary most as one picture, each with its number and bounds."""
    chosen = maps.lively_channels(cells, count).tolist() if len(cells) else []
    share = _TILE / max(layer.where.shown_size(SIDE))
    height, width = (max(round(side * share), 1) for side in layer.where.shown_size(SIDE))
    columns = max(math.ceil(math.sqrt(len(chosen))), 1)
    sheet = Image.new("RGB", (columns * (width + 8) + 8, math.ceil(len(chosen) / columns) * (height + 24) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for at, channel in enumerate(chosen):
        low, high = float(cells[:, channel].min()), float(cells[:, channel].max())
        drawn = layer.over(maps.viridis(layer.cells[..., channel], low, high), 0.85)
        left, top = 8 + at % columns * (width + 8), 8 + at // columns * (height + 24)
        sheet.paste(Image.fromarray(drawn).resize((width, height), Image.Resampling.BOX), (left, top))
        draw.text((left, top + height + 3), f"{channel}: {low:.3g} to {high:.3g}", fill="black", font=font)
    return sheet


def _titled(image: Image.Image, words: str) -> Image.Image:
    titled = Image.new("RGB", (image.width, image.height + 22), "white")
    titled.paste(image, (0, 22))
    shown = text.shortened(words.encode("latin-1", "replace").decode("latin-1"), 60)
    ImageDraw.Draw(titled).text((4, 4), shown, fill="black", font=ImageFont.load_default(size=12))
    return titled


def check_folder(given: PreviewParameters) -> Path:
    """Return the folder to write to.

    Raises:
        InputError: it is not a local folder, or in a run.
    """
    out = given.out or _OUT
    if is_remote(out):
        raise errors.InputError(f"--out {out!r} is not a local folder: write it beside you, and copy it")
    path = Path(out)
    subject.refuse_inside(path, given.source)
    if path.exists() and not path.is_dir():
        raise errors.InputError(f"--out {out!r} is not a folder: give another name")
    if (path / STORE_FILE).exists():
        raise errors.InputError(f"--out {out!r} is a run, in which nothing may change: give a folder of its own")
    return path


def write(made: Preview, folder: Path) -> list[Path]:
    """Write the pictures; return their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in made.pictures.items():
            picture.save(folder / name)
    except OSError as error:
        raise errors.InputError(f"--out {str(folder)!r} cannot be written: {error.strerror or error}") from error
    return [folder / name for name in made.pictures]

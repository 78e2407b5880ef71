"""Sections of the page with pictures: contact sheet, feature maps, probes, channels, nearest images, projection."""

import dataclasses
import functools
from typing import Final

import numpy as np

from genenc_core import errors, text
from genenc_core.encoding.cells import Cells
from genenc_core.report import maps, page, pictures, plots, projection
from genenc_core.report.page import Section
from genenc_core.report.parameters import ReportParameters
from genenc_core.stored.arrays import Array
from genenc_core.stored.rows import Stored

ON_SHEET: Final = 24
MAPPED: Final = 6
PROBES: Final = 3
OTHERS: Final = 3
CHANNELS: Final = 12
QUERIES: Final = 5
NEAREST: Final = 5
SMALL: Final = 160
"""Longest side of the pictures on the sheet, in pixels."""
_MOST_MAP_BYTES: Final = 512 * 2**20
"""Stored maps that are read."""


@dataclasses.dataclass(kw_only=True)
class Sample:
    """The rows that are shown, drawn by a seed from those that are stored, and what is read of them."""

    source: Stored
    given: ReportParameters
    rows: np.ndarray
    """int64 `[n]`, ascending."""

    @classmethod
    def of(cls, source: Stored, given: ReportParameters) -> "Sample":
        """Draw the rows."""
        ok = source.ok
        if len(ok) > given.sample:
            ok = np.sort(np.random.default_rng(given.seed).choice(ok, given.sample, replace=False, shuffle=False))
        return cls(source=source, given=given, rows=ok)

    @property
    def words(self) -> str:
        """How large it is."""
        stored = len(self.source.ok)
        if len(self.rows) == stored:
            return f"all {text.plural(stored, 'stored image')}"
        return f"{len(self.rows):,} of {stored:,} stored images, drawn by seed {self.given.seed}"

    @functools.cached_property
    def sheet_rows(self) -> np.ndarray:
        """Rows on the contact sheet, evenly spread."""
        return spread(self.rows, ON_SHEET)

    @functools.cached_property
    def map(self) -> Array | None:
        """The feature map that is shown."""
        found = [product for product in self.source.product_arrays if product.is_map]
        if self.given.maps is not None:
            return maps.require_map(self.source, self.given.maps)
        return found[0] if found else None

    @functools.cached_property
    def map_rows(self) -> np.ndarray:
        """Rows whose maps are shown: of the sheet, those with most points in view first."""
        most = MAPPED if self.map is None else max(min(MAPPED, _MOST_MAP_BYTES // max(self.map.row_bytes, 1)), 1)
        return spread(self.sheet_rows, most)

    @functools.cached_property
    def vectors(self) -> Array | None:
        """The vectors that are projected and compared.

        Raises:
            InputError: there are none of the name that was asked for.
        """
        found = [product for product in self.source.product_arrays if product.is_vector]
        if self.given.product is None:
            return found[0] if found else None
        wanted = [product for product in found if product.name == self.given.product]
        if not wanted:
            known = ", ".join(product.name for product in found) or "none"
            raise errors.InputError(
                f"--product {self.given.product!r} is no stored vector of whole images in {self.source.place!r}; "
                f"known: {known}"
            )
        return wanted[0]

    @functools.cached_property
    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows with finite vectors, and these, float64 `[n, C]`."""
        assert self.vectors is not None
        values = self.source.read(self.vectors.name, self.rows).astype(np.float64)
        finite = np.isfinite(values).all(axis=1)
        return self.rows[finite], values[finite]

    @functools.cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query rows, `[q]`, the rows nearest to each, `[q, k]`, and their cosine similarities."""
        if self.vectors is None or len(self.compared[0]) < 2:
            return np.empty(0, np.int64), np.empty((0, 0), np.int64), np.empty((0, 0))
        rows, values = self.compared
        queries = spread(np.arange(len(rows)), QUERIES)
        found, similar = projection.nearest(values, queries, NEAREST)
        return rows[queries], rows[found], similar

    @functools.cached_property
    def pictures(self) -> pictures.Pictures:
        """The images of all rows that are shown; decoded once."""
        queries, near, _ = self.neighbours
        wanted = np.unique(np.concatenate([self.sheet_rows, self.map_rows, queries, near.ravel()]))
        return pictures.load(self.source, wanted) if len(wanted) else pictures.Pictures(pixels={}, missing={})

    def names(self, rows: np.ndarray) -> dict[int, str]:
        """Return names of images by row."""
        wanted = np.unique(rows)
        return dict(zip(wanted.tolist(), self.source.names(wanted), strict=True))

    def shown(self, row: int, caption: str, note: str = "", *, most: int = SMALL) -> str:
        """Return the picture of a row, or why there is none."""
        pixels = self.pictures.pixels.get(row)
        if pixels is None:
            return page.absent(f"not shown: {self.pictures.missing.get(row, 'not read')}", caption)
        size = fitting(pixels.shape[0], pixels.shape[1], most)
        return page.picture(maps.shown_image(pixels, size), f"image {caption}", caption, note)


def fitting(height: int, width: int, most: int) -> tuple[int, int]:
    """Return the size of a picture of at most so many pixels a side."""
    share = min(1.0, most / max(height, width))
    return max(round(height * share), 1), max(round(width * share), 1)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return at most so many of the rows, evenly spread."""
    found: np.ndarray = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    return found


def sheet(sample: Sample) -> Section:
    """Return the contact sheet: images as the model sees them, with their points."""
    rows, title = sample.sheet_rows, "Contact sheet"
    if not len(rows):
        return Section(key="sheet", title=title, body=page.soft("No image is stored yet."))
    names, placed = sample.names(rows), maps.place(sample.source, rows)
    size = sample.source.model_run.preprocessing.height, sample.source.model_run.preprocessing.width
    whole = maps.Geometry(cells=Cells.regular((1, 1), size), grid=(1, 1), size=size)
    figures = []
    for at, row in enumerate(rows.tolist()):
        pixels = sample.pictures.pixels.get(row)
        if pixels is None or not len(sample.source.points):
            figures.append(sample.shown(row, names[row]))
            continue
        base = maps.shown_image(pixels, fitting(pixels.shape[0], pixels.shape[1], SMALL))
        drawn = maps.marked(base, [(float(x), float(y)) for x, y in placed.points[at]], whole)
        figures.append(page.picture(drawn, f"image {names[row]} with its points", names[row]))
    how = sample.source.model_run.preprocessing.describe()
    body = page.soft(f"{len(rows)} of {len(sample.source):,} images as the model sees them: {how}.")
    if gone := [row for row in rows.tolist() if row not in sample.pictures.pixels]:
        body += page.soft(f"{len(gone)} of them cannot be shown: their files are gone, changed or unreadable.")
    if sample.source.points:
        body += page.legend((maps.ink(at), name) for at, name in enumerate(sample.source.points))
    return Section(key="sheet", title=title, body=body + page.pictures(figures))


@dataclasses.dataclass(kw_only=True)
class _Maps:
    """The maps of the rows that are shown."""

    rows: np.ndarray
    names: dict[int, str]
    where: maps.Geometry
    cells: np.ndarray
    """`[n, h, w, C]`."""
    valid: np.ndarray
    """bool `[n, h, w]`: on the image and finite."""
    placed: maps.Placed

    def layer(self, sample: Sample, at: int) -> maps.Layer:
        """Return a map with the image below it."""
        pixels = sample.pictures.pixels.get(int(self.rows[at]))
        return maps.Layer(
            where=self.where,
            cells=self.cells[at],
            valid=self.valid[at],
            view=self.placed.views[at],
            base=None if pixels is None else maps.shown_image(pixels, self.where.shown_size()),
        )


def _read_maps(sample: Sample) -> _Maps | None:
    if sample.map is None or not len(sample.map_rows):
        return None
    rows = sample.map_rows
    where, placed = maps.Geometry.of(sample.source, sample.map), maps.place(sample.source, rows)
    cells = maps.channels_last(sample.source.read(sample.map.name, rows)).astype(np.float32)
    valid = maps.in_view(where, placed.views) & np.isfinite(cells).all(axis=-1)
    return _Maps(rows=rows, names=sample.names(rows), where=where, cells=cells, valid=valid, placed=placed)


def of_maps(sample: Sample) -> list[Section]:
    """Return the sections about the stored feature map; one line if there is none."""
    found = _read_maps(sample)
    if found is None or sample.map is None:
        words = "No feature map is stored: --maps of genenc extract stores them, and shows what the model sees where."
        return [Section(key="maps", title="Feature maps", body=page.soft(words))]
    return [_colours(sample, sample.map, found), _similarity(sample, found), _channels(sample, found)]


def _colours(sample: Sample, product: Array, found: _Maps) -> Section:
    colours = maps.Colours.of(found.cells[found.valid], sample.given.seed)
    h, w = found.where.grid
    shares = ", ".join(f"{100 * share:.0f} %" for share in colours.explained)
    down, across = found.where.cells.stride
    body = page.soft(
        f"{product.name}: {h} x {w} cells of {product.shape[0]} channels, one every {down:g} x {across:g} pixels. "
        f"The first three principal components of all cells shown are red, green and blue ({shares} of the variance); "
        "equal colours mean like vectors, in all pictures. Cells on bars around an image are left out."
    )
    strips = []
    for at, row in enumerate(found.rows.tolist()):
        layer, rgb = found.layer(sample, at), colours.rgb(found.cells[at])
        name = found.names[row]
        figures = [sample.shown(row, name, most=maps.SIDE)]
        if layer.base is not None:
            figures.append(page.picture(layer.over(rgb), f"map over image {name}", "over the image"))
        figures.append(page.picture(layer.alone(rgb), f"map of {name} in colours", "map"))
        strips.append(page.pictures(figures, "strip"))
    return Section(key="maps", title="Feature maps", body=body + page.pictures(strips, "strips"))


def _probes(sample: Sample, found: _Maps) -> list[tuple[int, tuple[float, float], str, int]]:
    """Return position of an image, x and y on the model's input, what is there, and its colour."""
    names = sample.source.points
    chosen: list[tuple[int, tuple[float, float], str, int]] = []
    for number, images in maps.points_in_view(found.placed, names).items():
        if images and len(chosen) < PROBES:
            at = images[number % len(images)]
            x, y = found.placed.points[at, number].tolist()
            chosen.append((at, (x, y), names[number], number))
    if chosen:
        return chosen
    for number, share in enumerate((0.5, 0.25, 0.75)[:PROBES]):
        at = min(number, len(found.rows) - 1)
        left, top, right, bottom = found.placed.views[at].tolist()
        xy = (left + share * (right - left), top + share * (bottom - top))
        chosen.append((at, xy, f"a point at {share:.0%}", number))
    return chosen


def _similarity(sample: Sample, found: _Maps) -> Section:
    body = page.soft(
        "The vector of the cell that holds a point (ringed), compared with every cell of its own map and of other "
        "images: cosine similarity, yellow where the encoder sees the same."
    )
    for at, xy, what, number in _probes(sample, found):
        row, column = found.where.cell_of(np.array(xy))
        probe = found.cells[at, row, column]
        others = [at, *(other for other in range(len(found.rows)) if other != at)][: 1 + OTHERS]
        similar = [maps.cosine(probe, found.cells[other]) for other in others]
        seen = np.concatenate([each[found.valid[other]] for each, other in zip(similar, others, strict=True)])
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
        name = found.names[int(found.rows[at])]
        body += f"<h3>{page.e(what)} in {page.e(name)}</h3>" + page.ramp(f"{low:.2f}", f"{high:.2f}")
        figures = []
        if (base := found.layer(sample, at).base) is not None:
            drawn = maps.marked(base, [xy], found.where, number)
            figures.append(page.picture(drawn, f"{what} in image {name}", "the point"))
        for other, each in zip(others, similar, strict=True):
            shown = found.layer(sample, other).over(maps.viridis(each, low, high), 0.7)
            picture = maps.marked(shown, [xy], found.where, number) if other == at else shown
            of = "the same image" if other == at else found.names[int(found.rows[other])]
            figures.append(page.picture(picture, f"similarity of {what} to {of}", of))
        body += page.pictures(figures, "strip")
    return Section(key="probes", title="What the encoder sees at a point", body=body)


def _channels(sample: Sample, found: _Maps) -> Section:
    cells = found.cells[found.valid]
    chosen = maps.lively_channels(cells, CHANNELS) if len(cells) else np.empty(0, np.int64)
    name = found.names[int(found.rows[0])]
    body = page.soft(
        f"The {len(chosen)} channels that vary most over the cells shown, in {name}; each from its least (dark) to its "
        "largest value (yellow) in all images shown."
    )
    layer, figures = found.layer(sample, 0), [sample.shown(int(found.rows[0]), "image")]
    for channel in chosen.tolist():
        low, high = float(cells[:, channel].min()), float(cells[:, channel].max())
        drawn = layer.over(maps.viridis(layer.cells[..., channel], low, high), 0.85)
        words = f"channel {channel}"
        figures.append(page.picture(drawn, f"{words} of {name}", words, f"{low:.3g} to {high:.3g}"))
    return Section(key="channels", title="Channels", body=body + page.pictures(figures))


def near(sample: Sample) -> Section:
    """Return images beside those with the nearest vectors."""
    queries, found, similar = sample.neighbours
    title = "Nearest images"
    if not len(queries) or sample.vectors is None:
        words = "No vector of whole images is stored." if sample.vectors is None else "There are too few vectors."
        return Section(key="nearest", title=title, body=page.soft(words))
    names = sample.names(np.concatenate([queries, found.ravel()]))
    body = page.soft(
        f"By the cosine of {sample.vectors.name}, among {sample.words}. The first of each row is the query."
    )
    for query, row, close in zip(queries.tolist(), found.tolist(), similar.tolist(), strict=True):
        figures = [sample.shown(query, names[query], "query")]
        figures += [sample.shown(near, names[near], f"{value:.4f}") for near, value in zip(row, close, strict=True)]
        body += page.pictures(figures, "strip")
    return Section(key="nearest", title=title, body=body)


def projected(sample: Sample) -> Section:
    """Return the projections of images, and of the vectors at points."""
    title = "Projection"
    if sample.vectors is None or len(sample.compared[0]) < 3:
        words = "No vector of whole images is stored." if sample.vectors is None else "There are too few vectors."
        return Section(key="projection", title=title, body=page.soft(words) + _points(sample))
    rows, values = sample.compared
    made = projection.project(values, sample.given.projection, sample.given.seed)
    by = projection.colouring(sample.source, rows, sample.given.color_by)
    body = page.soft(f"{sample.vectors.name} of {sample.words}, by {made.method}; coloured by {by.by}.")
    label = f"{made.method} of {text.plural(len(rows), 'image')}"
    body += page.plot(plots.scatter("images", made.xy, by.values, len(by.kinds), made.axes, label))
    if by.kinds:
        counts = np.bincount(by.values.astype(int), minlength=len(by.kinds)).tolist()
        body += page.legend(
            (plots.KINDS[at % len(plots.KINDS)], f"{name} ({counts[at]})") for at, name in enumerate(by.kinds)
        )
    return Section(key="projection", title=title, body=body + _points(sample))


def _points(sample: Sample) -> str:
    """Return the projection of the vectors at points, coloured by point; empty if there are none."""
    found = [product for product in sample.source.product_arrays if product.of_points and len(product.dims) == 2]
    names = sample.source.points
    if not found or len(names) < 2:
        return ""
    rows = spread(sample.rows, max(sample.given.sample // len(names), 2))
    values = sample.source.read(found[0].name, rows).astype(np.float64)
    flat, number = values.reshape(-1, values.shape[-1]), np.tile(np.arange(len(names)), len(rows))
    finite = np.isfinite(flat).all(axis=1)
    if finite.sum() < 3:
        return ""
    made = projection.project(flat[finite], sample.given.projection, sample.given.seed)
    kinds = min(len(names), projection.MOST_KINDS)
    shown = np.minimum(number[finite], kinds - 1)
    label = f"{made.method} of {int(finite.sum())} vectors at points"
    legend = [(plots.KINDS[at], names[at]) for at in range(kinds)]
    if kinds < len(names):
        legend[-1] = (legend[-1][0], projection.OTHER)
    return (
        f"<h3>{page.e(found[0].name)}</h3>"
        + page.soft(f"Vectors at points of {text.plural(len(rows), 'image')}, by {made.method}; coloured by point.")
        + page.plot(plots.scatter("points", made.xy, shown, kinds, made.axes, label))
        + page.legend(legend)
    )

"""Regions of a run's rows, or of a version's: their names, boxes and vectors, in the order of the images.

The places of a run's axis `region` that are no region are left out, and so are regions of rows that are not current.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from genenc_core import errors, float_values, statuses, stored_arrays, text
from genenc_core.features.vectors import Block, Left
from genenc_core.run.folder import RunFolder
from genenc_core.stored.arrays import Array, described
from genenc_core.stored.rows import Stored
from genenc_core.text import argument

IMAGE = "region_image"
_NOT_COPIED = (IMAGE, "region_image_id")
"""What `RegionRows.image` and the names of the images say."""


@dataclass(frozen=True, eq=False)
class _Part:
    """The regions of one run."""

    run: RunFolder
    group: Any
    places: np.ndarray
    """int64 `[n]`, ascending."""

    def read(self, name: str, at: slice) -> np.ndarray:
        """Return some of its regions; of stored integers their values.

        Raises:
            StoreError: they cannot be read.
        """
        places = self.places[at]

        def stored(each: str) -> np.ndarray:
            if not len(places):
                return np.asarray(self.group[each][:0])
            first = int(places[0])
            found: np.ndarray = np.asarray(self.group[each][first : int(places[-1]) + 1])[places - first]
            return found

        try:
            return float_values.read(
                name,
                stored,
                lambda each: dict(self.group[each].attrs),
                lambda each: self.group[each].metadata.dimension_names,
            )
        except (errors.GenencError, MemoryError):
            raise
        except Exception as error:  # of zarr, its codecs and the volume
            raise self.damaged(name, errors.reason(error)) from error

    def damaged(self, name: str, what: str) -> errors.StoreError:
        """Return the error of an array that cannot be read."""
        return errors.StoreError(
            f"{name!r} of {self.run.root!r} is damaged ({what}); genenc verify {argument(self.run.root)} --content "
            "lists the damage"
        )


class RegionRows:
    """All regions; take them by consecutive numbers."""

    def __init__(self, stored: Stored) -> None:
        import zarr

        self.stored = stored
        parts, images = list[_Part](), [np.empty(0, np.int64)]
        for part in stored.parts:
            group: Any = zarr.open_group(part.run.store.zarr_store(), mode="r")
            of = _Part(part.run, group, np.arange(group[IMAGE].shape[0])).read(IMAGE, slice(None))
            places = np.flatnonzero(np.isin(of, part.rows))
            parts.append(_Part(part.run, group, places))
            images.append(part.positions[np.searchsorted(part.rows, of[places])])
        self.image = np.concatenate(images)
        """Position of the image of each region, int64 `[R]`."""
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part.places) for part in parts)])

    def __len__(self) -> int:
        return len(self.image)

    @functools.cached_property
    def arrays(self) -> dict[str, Array]:
        """All arrays with a row per region, with the types of their values; not what integers are scaled by."""
        group = self._parts[0].group
        found = {name: each for name, each in group.arrays() if each.metadata.dimension_names[:1] == ("region",)}
        beside = {other for each in found.values() for other in float_values.beside(dict(each.attrs)).values()}
        return {name: described(name, each, each.chunks[0]) for name, each in found.items() if name not in beside}

    @property
    def products(self) -> list[str]:
        """Names of the products of regions."""
        return [name for name in self.stored.products if name in self.arrays]

    @property
    def described_by(self) -> list[Array]:
        """The arrays that say what each region is, but for its image."""
        names = [each.name for each in stored_arrays.TABLE if each.of_regions and each.name not in _NOT_COPIED]
        return [self.arrays[name] for name in names]

    def take(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return the values of regions `start` to `stop`.

        Raises:
            StoreError: they are missing or damaged.
        """
        found = []
        for part, first in zip(self._parts, self._starts.tolist(), strict=False):
            own = slice(max(start - first, 0), max(min(stop - first, len(part.places)), 0))
            if own.start < own.stop:
                found.append(self._checked(part, name, own))
        if found:
            return np.concatenate(found)
        return np.empty((0, *self.arrays[name].shape), self.arrays[name].dtype)

    def _checked(self, part: _Part, name: str, at: slice) -> np.ndarray:
        """Return values of a part; an object that is missing reads as none, which stored vectors are not."""
        values = part.read(name, at)
        if name in self.products:
            state = part.read(stored_arrays.REGION_STATUS, at)
            lost = ~np.isfinite(values).reshape(len(values), -1).all(1) & (state == statuses.REGION_OK)
            if lost.any():
                raise part.damaged(name, "vectors of stored regions are missing")
        return values

    def texts(self, name: str, rows: np.ndarray) -> list[str]:
        """Return values of an array of text."""
        return [str(self.take(name, row, row + 1)[0]) for row in rows.tolist()]

    @functools.cached_property
    def status(self) -> np.ndarray:
        """State of every region, uint8 `[R]`."""
        return self.take(stored_arrays.REGION_STATUS, 0, len(self))

    def find(self, region: str, image: str | None) -> int:
        """Return the number of a region, given by its name in an image, or as `#` and its number.

        Raises:
            InputError: there is none, or no image is given.
        """
        if region.startswith("#"):
            row = text.whole_number(region[1:])
            if row is None or row >= len(self):
                raise errors.InputError(
                    f"{region!r} is no region: {self.stored.title!r} has regions #0 to #{len(self) - 1}"
                )
            return row
        if image is None:
            raise errors.InputError(
                f"--region {region!r} is a name within an image: give --row IMAGE_ID too, or #N for the N-th region"
            )
        own = np.flatnonzero(self.image == self.stored.find(image))
        names = self.texts("region_name", own)
        if region not in names:
            has = f"its regions are {', '.join(names[:20])}" if names else "it has no regions"
            raise errors.InputError(f"{image!r} has no region {region!r}: {has}")
        return int(own[names.index(region)])


def are_in(stored: Stored) -> bool:
    """Return whether rows have regions."""
    return len(stored) > 0 and "regions" in stored.model_run.identity.get("images", {})


def is_product(stored: Stored, name: str) -> bool:
    """Return whether a product has vectors of regions."""
    return name in stored.products and name not in stored.arrays and are_in(stored)


class RegionVectors:
    """The vectors of a product of regions in blocks, as `vectors.Vectors` has those of images."""

    with_points = False
    points = (0,)
    count = 1

    def __init__(self, regions: RegionRows, product: str) -> None:
        self.regions = regions
        self.array = regions.arrays[product]
        self.channels = int(np.prod(self.array.shape, dtype=np.int64))
        states = {each.name: int((regions.status == each.value).sum()) for each in statuses.REGIONS}
        self.left = Left(rows={name: count for name, count in states.items() if count and name != "ok"})

    def blocks(self, memory: int) -> Iterator[Block]:
        """Yield all regions in order."""
        rows = max(memory // max(self.array.row_bytes, 1), 1)
        for start in range(0, len(self.regions), rows):
            stop = min(start + rows, len(self.regions))
            yield Block(start, self.at(start, stop), (self.regions.status[start:stop] == statuses.REGION_OK)[:, None])

    def at(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors of some regions, `[regions, 1, channels]`."""
        return self.regions.take(self.array.name, start, stop).reshape(stop - start, 1, self.channels)


def choose_product(regions: RegionRows, asked: str) -> str:
    """Return the product of regions that is meant: the one asked for, else the first of vectors.

    Raises:
        InputError: there is none.
    """
    known = regions.products
    if asked and asked not in known:
        raise errors.InputError(f"{asked!r} has no vector for each region: {', '.join(known) or 'no product'} has")
    if not known:
        raise errors.InputError(
            f"{regions.stored.title!r} stores no vectors of regions: probe it with --product 'regions=region_mean'"
        )
    return asked or min(known, key=lambda name: len(regions.arrays[name].shape) > 1)

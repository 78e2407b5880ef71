"""Regions of a batch of images on the model's input: where they are, which of them it sees, and their cells."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from genenc_core import spec, statuses
from genenc_core.encoding import region_weights
from genenc_core.encoding.cells import Cells
from genenc_core.images.labels.masks import Mask
from genenc_core.images.sources.regions import Regions

_LEAST_SHARE = 1e-12
"""Of the input's area: less is the rounding of an edge."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RegionBatch:
    """Regions of a batch, in the order of its images; one entry per region.

    Shapes: `image` int64 `[R]`, the position of its image in the batch; `at` int64 `[R]`, its place among the regions
    of the shard; `boxes` float64 `[R, 4]` in model pixels, what the image and its view have of them, NaN unless valid;
    `affines` float64 `[R, 4]` of their images; `status` uint8 `[R]`; `sampled` bool `[R]` by product: those whose exact
    values are returned, too. `input_size` is (height, width) of the model's input.
    """

    image: np.ndarray
    at: np.ndarray
    boxes: np.ndarray
    affines: np.ndarray
    status: np.ndarray
    masks: tuple[Mask | None, ...]
    input_size: tuple[int, int]
    sampled: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def valid(self) -> np.ndarray:
        """Which regions the model sees, bool `[R]`."""
        valid: np.ndarray = self.status == statuses.REGION_OK
        return valid

    def part(self, start: int, stop: int) -> "RegionBatch":
        """Return the regions of the images `start` to `stop` as those of a batch of these."""
        first, last = np.searchsorted(self.image, [start, stop]).tolist()
        kept = slice(first, last)
        return dataclasses.replace(
            self,
            image=self.image[kept] - start,
            at=self.at[kept],
            boxes=self.boxes[kept],
            affines=self.affines[kept],
            status=self.status[kept],
            masks=self.masks[kept],
            sampled={name: rows[kept] for name, rows in self.sampled.items()},
        )

    def by_image(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the position of each image with valid regions, and their indices."""
        valid = np.flatnonzero(self.valid)
        images, firsts = np.unique(self.image[valid], return_index=True)
        ends = np.append(firsts[1:], len(valid))
        for image, first, stop in zip(images.tolist(), firsts, ends, strict=False):
            yield image, valid[first:stop]

    def weights(self, at: np.ndarray, cells: Cells, size: tuple[int, int], *, of_boxes: bool) -> np.ndarray:
        """Return the share that each cell has of some valid regions, float64 `[n, h * w]`; each sums to 1.

        Args:
            at: indices of the regions.
            cells: grid of the map.
            size: (h, w) of the map.
            of_boxes: take the boxes of masks.
        """
        rows, columns = region_weights.edges(cells, size, self.input_size)
        found = np.empty((len(at), size[0] * size[1]))
        for number, index in enumerate(at.tolist()):
            mask = None if of_boxes else self.masks[index]
            if mask is None:
                area = region_weights.of_box(self.boxes[index], rows, columns)
            else:
                area = region_weights.of_mask(mask, self.affines[index], rows, columns)
            found[number] = (area / area.sum()).reshape(-1)
        return found

    def on_map(self, cells: Cells, size: tuple[int, int]) -> np.ndarray:
        """Return the boxes on a map where cell k covers k to k + 1, float64 `[R, 4]`, within the map."""
        scale = np.array([cells.stride[1], cells.stride[0]] * 2)
        first = np.array([cells.first[1], cells.first[0]] * 2)
        found: np.ndarray = np.clip((self.boxes - first) / scale + 0.5, 0, np.array([size[1], size[0]] * 2))
        return found


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ShardRegions:
    """Regions of a shard's images, and how many places a shard has on the axis `region`."""

    found: Regions
    places: int

    def __len__(self) -> int:
        return len(self.found)

    def of_row(self, row: int) -> slice:
        """Return the places of the regions of an image."""
        first, last = np.searchsorted(self.found.rows, [row, row + 1]).tolist()
        return slice(first, last)

    def empty_status(self) -> np.ndarray:
        """Return the `region_status` of a shard without a readable image, uint8 `[places]`."""
        status = np.full(self.places, statuses.NO_REGION, np.uint8)
        status[: len(self.found)] = statuses.REGION_UNREADABLE
        return status

    def on_model(
        self, rows: np.ndarray, affines: np.ndarray, sizes: np.ndarray, preprocessing: spec.Preprocessing
    ) -> RegionBatch:
        """Return the regions of a batch of images.

        Args:
            rows: their rows, `[n]`.
            affines: their maps from source to model pixels, float64 `[n, 4]`.
            sizes: (height, width) of their images, `[n, 2]`.
            preprocessing: defines the model's size.
        """
        spans = [self.of_row(row) for row in rows.tolist()]
        image = np.repeat(np.arange(len(spans)), [each.stop - each.start for each in spans])
        at = np.concatenate([np.arange(each.start, each.stop) for each in spans]) if spans else np.zeros(0, np.int64)
        at = at.astype(np.int64)
        masks = tuple(self.found.mask(index) for index in at.tolist())
        boxes = self.found.boxes[at]
        if self.found.scale.relative:
            boxes = boxes * np.tile(sizes[image][:, ::-1], 2)
        input_size = preprocessing.height, preprocessing.width
        seen, status = _seen(boxes, masks, affines[image], sizes[image], input_size)
        return RegionBatch(
            image=image,
            at=at,
            boxes=seen,
            affines=affines[image],
            status=status,
            masks=masks,
            input_size=input_size,
        )


def _seen(
    boxes: np.ndarray,
    masks: tuple[Mask | None, ...],
    affines: np.ndarray,
    sizes: np.ndarray,
    input_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the model sees of boxes in source pixels, float64 `[R, 4]`, and the status of the regions."""
    edge = np.tile(sizes[:, ::-1].astype(np.float64), 2)
    inside = np.clip(boxes, 0, edge)
    scale, offset = np.tile(affines[:, :2], 2), np.tile(affines[:, 2:], 2)
    model_edge = np.array([input_size[1], input_size[0]] * 2, np.float64)
    seen = np.clip(inside * scale + offset, 0, model_edge)
    least = _LEAST_SHARE * input_size[0] * input_size[1]
    empty = ~(_areas(boxes) > 0)
    other_size = np.zeros(len(boxes), bool)
    outside_view = ~(_areas(seen) > least)
    far = edge[:, :2] * affines[:, :2] + affines[:, 2:]
    slack = 1e-9 * model_edge[:2]
    cut = ((affines[:, 2:] < -slack) | (far > model_edge[:2] + slack)).any(1)
    for index, mask in enumerate(masks):
        if mask is None:
            continue
        empty[index] = mask.area == 0
        other_size[index] = mask.size != tuple(sizes[index].tolist())
        if cut[index] and not empty[index]:
            whole = (np.array([0.0, input_size[0]]), np.array([0.0, input_size[1]]))
            outside_view[index] |= not region_weights.of_mask(mask, affines[index], *whole).sum() > least
    outside_image = ~(_areas(inside) > 0)
    states = [
        statuses.REGION_OTHER_SIZE,
        statuses.REGION_EMPTY,
        statuses.REGION_OUTSIDE_IMAGE,
        statuses.REGION_OUTSIDE,
    ]
    status = np.select([other_size, empty, outside_image, outside_view], states, statuses.REGION_OK).astype(np.uint8)
    return np.where((status == statuses.REGION_OK)[:, None], seen, np.nan), status


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas

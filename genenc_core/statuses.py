"""The statuses that a run stores, of its rows and of its points: number, name and meaning, in one table each."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

NOT_WRITTEN: Final = 0
OK: Final = 1
UNREADABLE: Final = 2

POINT_OK: Final = 1
POINT_OUTSIDE: Final = 2
POINT_UNREADABLE: Final = 3
POINT_MISSING: Final = 4
POINT_OUTSIDE_IMAGE: Final = 5

REGION_OK: Final = 1
REGION_OUTSIDE: Final = 2
REGION_UNREADABLE: Final = 3
NO_REGION: Final = 4
REGION_OUTSIDE_IMAGE: Final = 5
REGION_EMPTY: Final = 6
REGION_OTHER_SIZE: Final = 7


class Status(NamedTuple):
    """One value of a status array."""

    value: int
    name: str
    meaning: str


ROWS: Final = (
    Status(NOT_WRITTEN, "not_written", "no shard with this row is committed"),
    Status(OK, "ok", "every array's row is final"),
    Status(UNREADABLE, "unreadable", "the image gave no features; its shard's commit record says why"),
)
"""The values of `status`."""
POINTS: Final = (
    Status(NOT_WRITTEN, "not_written", "no shard with this row is committed"),
    Status(POINT_OK, "ok", "the model saw the point"),
    Status(POINT_OUTSIDE, "outside_view", "in the image, but in no part of it that the model saw"),
    Status(POINT_UNREADABLE, "image_unreadable", "its image gave no features"),
    Status(POINT_MISSING, "no_such_point", "the points file has none of this name for the image"),
    Status(
        POINT_OUTSIDE_IMAGE,
        "outside_image",
        "beyond the edges of its image: an error of labels; runs of genenc 0.1.0 say 2 of it, and go on to",
    ),
)
"""The values of `point_status`."""
REGIONS: Final = (
    Status(NOT_WRITTEN, "not_written", "no shard with this row is committed"),
    Status(REGION_OK, "ok", "the model saw at least part of the region"),
    Status(REGION_OUTSIDE, "outside_view", "in the image, but in no part of it that the model saw"),
    Status(REGION_UNREADABLE, "image_unreadable", "its image gave no features"),
    Status(NO_REGION, "no_region", "no region: a place that its shard leaves free"),
    Status(REGION_OUTSIDE_IMAGE, "outside_image", "beyond the edges of its image: an error of labels"),
    Status(REGION_EMPTY, "empty", "a region without an area"),
    Status(REGION_OTHER_SIZE, "other_size", "a mask of another size than its image"),
)
"""The values of `region_status`."""


def written(table: Iterable[Status]) -> tuple[Status, ...]:
    """Return the statuses that a committed row or its point can have."""
    return tuple(each for each in table if each.value != NOT_WRITTEN)


def counts(table: Iterable[Status], values: np.ndarray) -> dict[str, int]:
    """Return how often each status occurs among `values`, of any shape, by its name."""
    return {each.name: int(np.count_nonzero(values == each.value)) for each in table}


def flags(table: Iterable[Status]) -> dict[str, object]:
    """Return the attributes that explain a status array, as in CF conventions 3.5."""
    values, names, _ = zip(*table, strict=True)
    return {"flag_values": list(values), "flag_meanings": " ".join(names)}

"""What `point_status` says of a point, as numbers and as names in the order in which they are told; no torch."""

from collections.abc import Mapping
from typing import Final

POINT_OK: Final = 1
POINT_OUTSIDE: Final = 2
POINT_UNREADABLE: Final = 3
POINT_MISSING: Final = 4

POINT_STATES: Final[Mapping[int, str]] = {
    POINT_OK: "ok",
    POINT_OUTSIDE: "outside_view",
    POINT_UNREADABLE: "image_unreadable",
    POINT_MISSING: "no_such_point",
}

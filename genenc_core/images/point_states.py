"""What `point_status` says of a point, as numbers and as names in the order in which they are shown; no torch."""

from collections.abc import Mapping
from typing import Final

POINT_OK: Final = 1
POINT_OUTSIDE: Final = 2
POINT_UNREADABLE: Final = 3
POINT_MISSING: Final = 4
POINT_OUTSIDE_IMAGE: Final = 5
"""Beyond the edges of its image: an error of labels. Runs of genenc 0.1.0 say 2 of it, and go on to."""

POINT_STATES: Final[Mapping[int, str]] = {
    POINT_OK: "ok",
    POINT_OUTSIDE: "outside_view",
    POINT_UNREADABLE: "image_unreadable",
    POINT_MISSING: "no_such_point",
    POINT_OUTSIDE_IMAGE: "outside_image",
}

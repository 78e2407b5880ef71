"""Paths in a run folder, and the observer hook by which tests follow the protocol."""

import re
from collections.abc import Callable
from typing import Final

Observer = Callable[[str], None]
"""Called with the name of each protocol step as it is reached, e.g. `commit:before`."""

GROUP: Final = "features.zarr"
"""The Zarr group; contains only Zarr nodes."""
TRANSACTIONS: Final = "_txn"
"""Protocol files, outside the Zarr group."""
STORE_FILE: Final = "_txn/store.json"
"""The document that identifies the run."""
COMMITS: Final = "_txn/commits"
"""One record per committed shard."""
STAGING: Final = "_txn/staging"
"""One folder per running attempt."""
CLAIMS: Final = "_txn/claims"
"""Shard claims of the workers."""
SET_ASIDE: Final = "_txn/set-aside"
"""Files that repairs moved away."""
REPAIR: Final = "_txn/repair.json"
"""Lock of the running repair."""

_NAME: Final = re.compile(r"s(\d{7,})(?:\.r([1-9]\d{0,3}))?(?:\.json|-\w+)")


def silent(_point: str) -> None:
    """Ignore a protocol step."""


def record(shard: int, generation: int = 0) -> str:
    """Return the key of a shard's commit record: the first, or a later one that healed rows."""
    return f"{COMMITS}/{record_name(shard, generation)}"


def record_name(shard: int, generation: int = 0) -> str:
    """Return the file name of a shard's commit record."""
    return f"s{shard:07d}{_suffix(generation)}.json"


def attempt(shard: int, name: str = "", generation: int = 0) -> str:
    """Return the staging folder of one attempt; without a name, the common prefix of all attempts."""
    return f"{STAGING}/s{shard:07d}{_suffix(generation)}-{name}"


def _suffix(generation: int) -> str:
    return f".r{generation}" if generation else ""


def generation_of(name: str) -> tuple[int, int] | None:
    """Parse the shard and generation from a record's or attempt's name; None for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None

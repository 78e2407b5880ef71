"""Where things lie in a run folder, and the observer that tests hang on the protocol."""

import re
from collections.abc import Callable
from typing import Final

Observer = Callable[[str], None]
"""Called with the name of each point of the protocol as it is passed, e.g. `commit:before`."""

GROUP: Final = "features.zarr"
"""The Zarr group; only Zarr nodes inside."""
TRANSACTIONS: Final = "_txn"
"""Everything of the protocol, outside the Zarr group."""
STORE_FILE: Final = "_txn/store.json"
"""The document that says which run this folder is."""
COMMITS: Final = "_txn/commits"
"""One record per committed shard."""
STAGING: Final = "_txn/staging"
"""One folder per running attempt."""
CLAIMS: Final = "_txn/claims"
"""Who is at which shard."""
SET_ASIDE: Final = "_txn/set-aside"
"""What repairs moved away."""
REPAIR: Final = "_txn/repair.json"
"""Held by the one repair that runs."""

_NAME: Final = re.compile(r"s(\d{7,})(?:\.r([1-9]\d{0,3}))?(?:\.json|-\w+)")


def silent(_point: str) -> None:
    """Observe nothing."""


def record(shard: int, generation: int = 0) -> str:
    """Return the key of a shard's commit record: its first, or a later one that healed rows."""
    return f"{COMMITS}/{record_name(shard, generation)}"


def record_name(shard: int, generation: int = 0) -> str:
    """Return the name of a shard's commit record in the folder of the records."""
    return f"s{shard:07d}{_later(generation)}.json"


def attempt(shard: int, name: str = "", generation: int = 0) -> str:
    """Return the folder of one attempt at a record; without a name, what the folders of all attempts begin with."""
    return f"{STAGING}/s{shard:07d}{_later(generation)}-{name}"


def _later(generation: int) -> str:
    return f".r{generation}" if generation else ""


def generation_of(name: str) -> tuple[int, int] | None:
    """Return the shard and the generation of any record's or attempt's name; None for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None

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

_SHARD_NAME: Final = re.compile(r"s(\d{7,})(?:\.json|-\w+)")


def silent(_point: str) -> None:
    """Observe nothing."""


def record(shard: int) -> str:
    """Return the key of a shard's commit record."""
    return f"{COMMITS}/s{shard:07d}.json"


def attempt(shard: int, name: str = "") -> str:
    """Return the folder of one attempt at a shard; without a name, what the folders of all attempts begin with."""
    return f"{STAGING}/s{shard:07d}-{name}"


def shard_of(name: str) -> int | None:
    """Return the shard that a record's or an attempt's name belongs to; None for any other name."""
    match = _SHARD_NAME.fullmatch(name)
    return int(match[1]) if match else None

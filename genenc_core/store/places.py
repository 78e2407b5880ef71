"""Where things lie in a run folder, and the observer that tests hang on the protocol."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Observer = Callable[[str], None]
"""Called with the name of each point of the protocol as it is passed, e.g. `commit:before`."""

_SHARD_NAME: Final = re.compile(r"s(\d{7,})(?:\.json|-\w+)")


def silent(_point: str) -> None:
    """Observe nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The paths of one run folder."""

    root: Path

    @property
    def zarr(self) -> Path:
        """The Zarr group; only Zarr nodes inside."""
        return self.root / "features.zarr"

    @property
    def transactions(self) -> Path:
        """Everything of the protocol, outside the Zarr group."""
        return self.root / "_txn"

    @property
    def store_file(self) -> Path:
        """The document that says which run this folder is."""
        return self.transactions / "store.json"

    @property
    def commits(self) -> Path:
        """One record per committed shard."""
        return self.transactions / "commits"

    @property
    def staging(self) -> Path:
        """One folder per running attempt."""
        return self.transactions / "staging"

    @property
    def set_aside(self) -> Path:
        """What repairs moved away."""
        return self.transactions / "set-aside"

    def record(self, shard: int) -> Path:
        """The commit record of a shard."""
        return self.commits / f"s{shard:07d}.json"

    def attempt(self, shard: int, attempt: str) -> Path:
        """The folder of one attempt at a shard."""
        return self.staging / f"s{shard:07d}-{attempt}"


def shard_of(name: str) -> int | None:
    """Return the shard that a record's or an attempt's name belongs to; None for any other name."""
    match = _SHARD_NAME.fullmatch(name)
    return int(match[1]) if match else None

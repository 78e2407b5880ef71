"""Benchmark results: rows of repeats, tables of rows, a report of tables and its JSON form."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pydantic

from genenc_core import errors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Measurements of one alternative: seconds per repeat of `count` units each.

    `cpu_seconds` covers all its processes (empty if unknown), `driver_seconds` only the driving one without its
    children. `peak_bytes` is the peak memory of its processes; `foreign_cores` the number of cores that other processes
    used meanwhile. A row without repeats was not measured, and `note` says why.
    """

    name: str
    count: float = 0.0
    cpu_seconds: tuple[float, ...] = ()
    wall_seconds: tuple[float, ...] = ()
    driver_seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    foreign_cores: float | None = None
    group: str = ""
    note: str = ""

    @property
    def measured(self) -> bool:
        """Whether the row has measurements."""
        return bool(self.wall_seconds) and self.count > 0

    @property
    def cpu(self) -> float | None:
        """Median CPU seconds per unit; None if unknown."""
        return statistics.median(self.cpu_seconds) / self.count if self.cpu_seconds else None

    @property
    def driver(self) -> float | None:
        """Median CPU seconds of the driving process per unit; None if unknown."""
        return statistics.median(self.driver_seconds) / self.count if self.driver_seconds else None

    @property
    def wall(self) -> float:
        """Median wall seconds per unit."""
        return statistics.median(self.wall_seconds) / self.count

    @property
    def spread(self) -> float:
        """Half the range of the repeats' CPU seconds (wall seconds if unknown), relative to their median."""
        seconds = self.cpu_seconds or self.wall_seconds
        middle = statistics.median(seconds)
        return (max(seconds) - min(seconds)) / 2 / middle if middle else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows to compare; every row is shown as a ratio to each row named in `baselines` of its group.

    `kind` selects what is shown: costs per unit, units per second, or memory and notes. `beyond` adds a column of CPU
    time above the baseline that it names, `driving` a column for the driving process.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    unit: str = "image"
    settings: str = ""
    baselines: tuple[str, ...] = ()
    kind: Literal["costs", "rates", "memory"] = "costs"
    beyond: str = ""
    driving: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Tables measured on one machine by one command; `stopped` if the user interrupted it."""

    machine: Mapping[str, str]
    command: str
    seconds: float
    tables: tuple[Table, ...]
    stopped: bool = False

    def to_json(self) -> str:
        """Serialise to indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Parse a report written by `to_json`.

        Raises:
            InputError: the text is not a report.
        """
        try:
            return pydantic.TypeAdapter(cls).validate_json(text)
        except pydantic.ValidationError as error:
            raise errors.InputError(f"not a report of `genenc bench`: {error.errors()[0]['msg']}") from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a suite.

    `folder` is a scratch folder. `flows` names the flow runner (`module:class`), None to skip flows. `peers` contains a
    virtual environment per other tool. `tell` is called with progress messages.
    """

    folder: Path
    repeats: int = 5
    quick: bool = False
    compiled: bool = False
    flows: str | None = None
    peers: Path | None = None
    tell: Callable[[str], None] = lambda _words: None

    def pick(self, full: int, quick: int) -> int:
        """Return the full or the quick size of a measurement."""
        return quick if self.quick else full

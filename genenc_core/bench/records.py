"""What a benchmark found: rows of repeats, tables of rows, a report of tables; and the report as JSON."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import pydantic

from genenc_core import errors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of doing a thing, measured: seconds of each repeat, of `count` units each; no CPU seconds: not known.

    `peak_bytes` is the largest memory of its processes; `foreign_cores` what others took of the machine meanwhile.
    A row without repeats was not measured, and `note` says why.
    """

    name: str
    count: float = 0.0
    cpu_seconds: tuple[float, ...] = ()
    wall_seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    foreign_cores: float | None = None
    group: str = ""
    note: str = ""

    @property
    def measured(self) -> bool:
        """Whether there are figures."""
        return bool(self.wall_seconds) and self.count > 0

    @property
    def cpu(self) -> float | None:
        """CPU seconds per unit, the median; None where they are not known."""
        return statistics.median(self.cpu_seconds) / self.count if self.cpu_seconds else None

    @property
    def wall(self) -> float:
        """Wall seconds per unit, the median."""
        return statistics.median(self.wall_seconds) / self.count

    @property
    def spread(self) -> float:
        """Half the range of the repeats' CPU seconds (of their wall seconds without), as a share of their median."""
        seconds = self.cpu_seconds or self.wall_seconds
        middle = statistics.median(seconds)
        return (max(seconds) - min(seconds)) / 2 / middle if middle else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows to be compared; `baselines` name rows, and every row is shown as a ratio to each of them in its group."""

    name: str
    title: str
    rows: tuple[Row, ...]
    unit: str = "image"
    settings: str = ""
    baselines: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Tables measured on one machine in one call of the command; `stopped` when its user ended it before the last."""

    machine: Mapping[str, str]
    command: str
    seconds: float
    tables: tuple[Table, ...]
    stopped: bool = False

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Read what `to_json` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            return pydantic.TypeAdapter(cls).validate_json(text)
        except pydantic.ValidationError as error:
            raise errors.InputError(f"this is no report of `genenc bench`: {error.errors()[0]['msg']}") from error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a suite is to measure.

    `folder` is its own for what it writes. `flows` names what carries out flows (`module:class`), None without them.
    `peers` holds one virtual environment per other tool. `tell` takes lines about progress.
    """

    folder: Path
    repeats: int = 5
    quick: bool = False
    compiled: bool = False
    flows: str | None = None
    peers: Path | None = None
    tell: Callable[[str], None] = lambda _words: None

    def pick(self, full: int, quick: int) -> int:
        """Return the size of a measurement."""
        return quick if self.quick else full

"""Writes the committed results into RESULTS.md, and a selection into the README.

Run: genenc bench --suite data --out tests/benchmarks/results-data.json && python tests/benchmarks/readme.py
and so on for the others; a file may hold only some of the tables of its command, where another has newer ones.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from genenc_core.bench import table
from genenc_core.bench.report import Report, Row, Table

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the README's table: a measured row by its table, group and name, next to a baseline."""

    words: str
    table: str
    row: str
    baseline: str
    group: str = ""


FIGURES = (
    Figure(
        words="JPEGs of 500 x 375: read, decoded, resized, stored, by one decode worker",
        table="Data path, 1 decode worker",
        row="genenc",
        baseline="plain DataLoader",
    ),
    Figure(
        words="resnet18 at 224 pixels, the whole command",
        table="End to end",
        group="resnet18",
        row="genenc (Prefect)",
        baseline="bare forward",
    ),
    Figure(
        words="a shard of 4,096 vectors committed",
        table="Vectors, float32 [4096, 768]",
        row="genenc commit",
        baseline="plain write, fsync",
    ),
    Figure(
        words="ten million images planned",
        table="Planning: a list of images becomes a manifest and an empty store",
        row="10,000,000 rows",
        baseline="1,000,000 rows",
    ),
)


def main() -> None:
    """Rewrite both pages."""
    found = reports()
    for path, write in ((ROOT / "README.md", in_readme), (FOLDER / "RESULTS.md", in_results)):
        path.write_text(write(path.read_text(encoding="utf-8"), found), encoding="utf-8")


def reports() -> list[Report]:
    """Return the committed reports, `results*.json`."""
    return [Report.from_json(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("results*.json"))]


def in_readme(page: str, found: list[Report]) -> str:
    """Return the README with `FIGURES` in its block."""
    tables = [each for report in found for each in report.tables]
    machines = sorted({f"{each.machine['processor']}, {each.machine['cores']} cores" for each in found})
    lines = [
        f"Measured on {' and '.join(machines)}, without a GPU:",
        "",
        "| what | genenc, wall time | next to |",
        "|---|---|---|",
        *(_figure(figure, tables) for figure in FIGURES),
    ]
    return _filled(page, "figures", lines)


def _figure(figure: Figure, tables: Iterable[Table]) -> str:
    (given,) = [each for each in tables if each.title == figure.table]
    ours, base = (_row(given, figure.group, name) for name in (figure.row, figure.baseline))
    multiple = table.ratio(ours, base, "wall_seconds")
    shown = table.wall(ours, given)
    return f"| {figure.words} | {shown} | {multiple} x {figure.baseline} ({table.wall(base, given)}) |"


def _row(given: Table, group: str, name: str) -> Row:
    (found,) = [row for row in given.rows if (row.group, row.name) == (group, name)]
    return found


def in_results(page: str, found: list[Report]) -> str:
    """Return RESULTS.md with genenc's own rows in its first block and all tables in its second."""
    brief = "\n".join(map(table.brief, found)).splitlines()
    lines = [line if line.startswith("|") else _wrapped(line) for line in brief]
    return _filled(_filled(page, "brief", lines), "full", "\n".join(map(table.report, found)).splitlines())


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 120, break_long_words=False, break_on_hyphens=False)


def _filled(page: str, name: str, lines: Iterable[str]) -> str:
    """Return a page with these lines between the marks of a block."""
    block = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", flags=re.DOTALL)
    assert len(block.findall(page)) == 1, name
    text = "".join(f"{line}\n" for line in lines)
    return block.sub(lambda match: f"{match[1]}{text}{match[2]}", page)


if __name__ == "__main__":
    main()

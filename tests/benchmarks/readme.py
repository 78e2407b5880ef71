"""Puts the committed figures into the README, in brief, and into RESULTS.md, as `genenc bench` prints them.

Run: genenc bench --suite data --out tests/benchmarks/results-data.json && python tests/benchmarks/readme.py
and so on for the others; a file may hold only some of the tables of its command, where another has newer ones.
"""

import re
import textwrap
from pathlib import Path

from genenc_core.bench import table
from genenc_core.bench.records import Report

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
BLOCK = re.compile(r"(<!-- bench: begin -->\n).*?(<!-- bench: end -->)", flags=re.DOTALL)


def main() -> None:
    """Write both anew."""
    found = reports()
    readme = ROOT / "README.md"
    readme.write_text(in_brief(readme.read_text(encoding="utf-8"), found), encoding="utf-8")
    (FOLDER / "RESULTS.md").write_text(in_full(found), encoding="utf-8")


def reports() -> list[Report]:
    """Return the committed reports, `results*.json`."""
    return [Report.from_json(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("results*.json"))]


def in_brief(readme: str, found: list[Report]) -> str:
    """Return the README with these reports in its block, in lines of at most 120 characters but for tables."""
    lines = "\n".join(map(table.brief, found)).splitlines()
    shown = "".join(f"{line if line.startswith('|') else _filled(line)}\n" for line in lines)
    return BLOCK.sub(lambda match: f"{match[1]}{shown}{match[2]}", readme)


def _filled(line: str) -> str:
    return textwrap.fill(line, 120, break_long_words=False, break_on_hyphens=False)


def in_full(found: list[Report]) -> str:
    """Return a page of all their tables."""
    return "# Figures\n\n" + "\n".join(map(table.report, found))


if __name__ == "__main__":
    main()

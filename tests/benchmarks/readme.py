"""Puts the committed figures into the README, as `genenc bench` prints them.

Run: genenc bench --out tests/benchmarks/results.json && python tests/benchmarks/readme.py
"""

import re
from pathlib import Path

from genenc_core.bench import table
from genenc_core.bench.records import Report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results.json"
BLOCK = re.compile(r"(<!-- bench: begin -->\n).*?(<!-- bench: end -->)", flags=re.DOTALL)


def main() -> None:
    """Write the README anew."""
    readme = ROOT / "README.md"
    found = rendered(readme.read_text(encoding="utf-8"), RESULTS.read_text(encoding="utf-8"))
    readme.write_text(found, encoding="utf-8")


def rendered(readme: str, results: str) -> str:
    """Return the README with these figures in its block."""
    shown = table.report(Report.from_json(results))
    return BLOCK.sub(lambda match: f"{match[1]}{shown}{match[2]}", readme)


if __name__ == "__main__":
    main()

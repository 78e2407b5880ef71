"""The command line of a suite that is no part of genenc: `python tests/benchmarks/NAME.py [--quick] [--out FILE]`."""

import argparse
import sys
import tempfile
from pathlib import Path

from genenc_core.bench import suites, table
from genenc_core.bench.report import Options


def main(name: str, doc: str | None, *, peers: bool = False) -> None:
    """Measure the suite of the module `name`, show its tables, and write them where `--out` says.

    `peers`: it takes a folder of other tools' environments.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="measurements of each (5, with --quick 3)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller ones")
    parser.add_argument("--folder", type=Path, help="where to work (the temporary folder)")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    if peers:
        parser.add_argument("--peers", type=Path, help="a folder of other tools' environments (install_peers.py)")
    given = parser.parse_args()
    words = f"python tests/benchmarks/{name}.py{' --quick' if given.quick else ''}"
    words += f" --repeats {given.repeats}" if given.repeats else ""
    words += " --peers FOLDER" if peers and given.peers else ""
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="genenc-bench-") as scratch:
        options = Options(
            folder=Path(scratch),
            repeats=given.repeats or (3 if given.quick else 5),
            quick=given.quick,
            peers=given.peers if peers else None,
            tell=_tell,
        )
        found = suites.measure([name], options, command=words, modules={name: name})
    sys.stdout.write(table.report(found))
    if given.out is not None:
        given.out.write_text(found.to_json(), encoding="utf-8")
    sys.exit("\n".join(suites.failures(found)) or (130 if found.stopped else 0))


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")

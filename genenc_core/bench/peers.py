"""The suite `peers`: the data path of other tools, where their environments are set up."""

import sys
from pathlib import Path

from genenc_core.bench import data, images
from genenc_core.bench.measure import Way, slopes
from genenc_core.bench.records import Options, Row, Table

PROGRAMS = Path(__file__).with_name("peer_ways.py")
TOOLS = {"ray": "ray_data", "thingsvision": "thingsvision", "fiftyone": "fiftyone"}
"""The folder of a tool's environment, and the function that uses it."""


def run(options: Options) -> list[Table]:
    """Measure the tools that are set up; a row says of the others that they are not."""
    counts = (256, options.pick(2304, 1280))
    for count in counts:
        images.draw(options.folder / f"photos-{count}", count)
    known = {
        "decode alone": f"{data.WAYS}:decoding",
        "plain DataLoader": f"{data.WAYS}:plain_loader",
        "genenc": f"{data.WAYS}:extraction",
    }
    pairs = [_pair(options, counts, name, program) for name, program in known.items()]
    absent: list[Row] = []
    for name, function in TOOLS.items():
        python = options.peers and options.peers.absolute() / name / "bin" / "python"
        if python and python.exists():
            pairs.append(_pair(options, counts, name, f"{PROGRAMS}:{function}", str(python)))
        else:
            absent.append(Row(name=name, note="not installed"))
    return [
        Table(
            name="peers",
            title="Other tools",
            settings=f"What an image more costs, from {counts[0]} to {counts[1]} JPEG files of 500 x 375, 90 kB, with "
            "one loading worker and batches of 32; the network takes means. What each keeps: genenc verified Zarr, Ray "
            "Data Parquet, FiftyOne its database, thingsvision an array, DataLoader nothing.",
            baselines=("genenc", "plain DataLoader"),
            rows=(*slopes(pairs, options), *absent),
        )
    ]


def _pair(
    options: Options, counts: tuple[int, int], name: str, program: str, python: str = sys.executable
) -> tuple[Way, Way]:
    less, most = (
        Way(
            name=name,
            program=program,
            arguments={"folder": str(options.folder / f"photos-{count}")} | _more(options, name, program, count),
            python=python,
        )
        for count in counts
    )
    return less, most


def _more(options: Options, name: str, program: str, count: int) -> dict[str, object]:
    threads = {"threads": 1} if program.startswith(data.WAYS) else {}
    keeps = name not in ("decode alone", "plain DataLoader")
    return threads | ({"out": str(options.folder / f"{name}-{count}" / "run")} if keeps else {})

"""Data path of other tools whose environments are installed.

Run: python tests/benchmarks/peers.py [--quick] [--peers FOLDER] [--out tests/benchmarks/results-peers.json]
"""

import functools
import sys
from pathlib import Path

import suite
from genenc_core.bench import data, images
from genenc_core.bench.measure import Way, slopes
from genenc_core.bench.report import Options, Row, Table

PROGRAMS = Path(__file__).with_name("peer_ways.py")
TOOLS = {
    "ray": "ray_data",
    "thingsvision": "thingsvision",
    "clip-retrieval": "clip_retrieval",
    "fiftyone": "fiftyone",
    "spdl": "spdl",
    "dali": "dali",
}
"""Environment folder and program of each tool."""
KEEPING_NOTHING = ("decode alone", "plain DataLoader", "spdl", "dali")


def run(options: Options) -> list[Table]:
    """Measure the installed tools; the others get a row that says so."""
    counts = (256, options.pick(2304, 1280))
    for count in counts:
        images.draw(options.folder / f"photos-{count}", count)
    known = {
        "decode alone": f"{data.WAYS}:decoding",
        "plain DataLoader": f"{data.WAYS}:plain_loader",
        "genenc": f"{data.WAYS}:extraction",
    }
    ways = [functools.partial(_way, options.folder, name, program) for name, program in known.items()]
    absent: list[Row] = []
    for name, function in TOOLS.items():
        python = options.peers and options.peers.absolute() / name / "bin" / "python"
        if python and python.exists():
            program = f"{PROGRAMS}:{function}"
            ways.append(functools.partial(_way, options.folder, name, program, python=str(python)))
        else:
            absent.append(Row(name=name, note="not installed"))
    return [
        Table(
            name="peers",
            title="Other tools",
            settings=f"What an image more costs, from {counts[0]} to {counts[1]} JPEG files of 500 x 375, 90 kB, with "
            "one loading worker and batches of 32; the network takes means. What each keeps: genenc verified Zarr, Ray "
            "Data Parquet, clip-retrieval .npy and Parquet, FiftyOne its database, thingsvision an array, "
            "DataLoader, SPDL and DALI (on the CPU) nothing.",
            baselines=("genenc", "plain DataLoader"),
            driving=True,
            rows=(*slopes(ways, counts, options), *absent),
        )
    ]


def _way(folder: Path, name: str, program: str, count: int, *, python: str = sys.executable) -> Way:
    arguments: dict[str, object] = {"folder": str(folder / f"photos-{count}")}
    if program.startswith(data.WAYS):
        arguments["workers"] = 1
    if name not in KEEPING_NOTHING:
        arguments["out"] = str(folder / f"{name}-{count}" / "run")
    # Ray's scheduler does not count what its workers took once they have ended.
    return Way(name=name, program=program, arguments=arguments, python=python, all_counted=name != "ray")


if __name__ == "__main__":
    suite.main("peers", __doc__, peers=True)

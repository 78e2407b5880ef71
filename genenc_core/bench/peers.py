"""The suite `peers`: the data path of other tools, where their environments are set up."""

from pathlib import Path

from genenc_core.bench import data, images
from genenc_core.bench.measure import Way, compare
from genenc_core.bench.records import Options, Row, Table

PROGRAMS = Path(__file__).with_name("peer_ways.py")
TOOLS = {"ray": "ray_data", "thingsvision": "thingsvision", "fiftyone": "fiftyone"}
"""The folder of a tool's environment, and the function that uses it."""


def run(options: Options) -> list[Table]:
    """Measure the tools that are set up; a row says of the others that they are not."""
    count = options.pick(512, 256)
    photos = str(images.draw(options.folder / "photos", count))
    both = {"folder": photos, "threads": 1}
    own = {**both, "out": str(options.folder / "runs" / "run")}
    ways = [
        Way(name="decode alone", program=f"{data.WAYS}:decoding", arguments=both),
        Way(name="plain DataLoader", program=f"{data.WAYS}:plain_loader", arguments=both),
        Way(name="genenc", program=f"{data.WAYS}:extraction", arguments=own),
    ]
    absent: list[Row] = []
    for name, function in TOOLS.items():
        python = options.peers and options.peers.absolute() / name / "bin" / "python"
        if python and python.exists():
            out = str(options.folder / name)
            given = {"folder": photos, "out": out}
            ways.append(Way(name=name, program=f"{PROGRAMS}:{function}", arguments=given, python=str(python)))
        else:
            absent.append(Row(name=name, note="not installed"))
    return [
        Table(
            name="peers",
            title="Other tools",
            settings=f"{count} JPEG files of 500 x 375, 90 kB, one loading worker, batches of 32; the network is an "
            "average pool. Start-up is not measured. What each keeps: genenc verified Zarr, Ray Data Parquet, FiftyOne "
            "its database, thingsvision an array, DataLoader nothing.",
            baselines=("genenc", "plain DataLoader"),
            rows=(*compare(ways, options), *absent),
        )
    ]

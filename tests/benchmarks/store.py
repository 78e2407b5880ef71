"""Shard commits compared with plain writes of the same bytes and with other writers.

Run: python tests/benchmarks/store.py [--quick] [--out tests/benchmarks/results-store.json]
"""

import importlib.util
from pathlib import Path

import suite
from genenc_core.bench.measure import Way, compare
from genenc_core.bench.report import Options, Table

WAYS = Path(__file__).with_name("store_ways.py")
SHARDS = 16


def run(options: Options) -> list[Table]:
    """Measure shards of vectors and of maps."""
    return [
        _table(options, "vectors", "Vectors, float32 [4096, 768]", rows=4096, shape=(768,), dtype="float32", chunk=256),
        _table(
            options,
            "maps",
            f"Maps, float16 [{options.pick(512, 128)}, 768, 7, 7]",
            rows=options.pick(512, 128),
            shape=(768, 7, 7),
            dtype="float16",
            chunk=64,
        ),
    ]


def _table(
    options: Options, name: str, title: str, *, rows: int, shape: tuple[int, ...], dtype: str, chunk: int
) -> Table:
    given = {"rows": rows, "shape": list(shape), "dtype": dtype, "shards": SHARDS}
    libraries = {"zarr-python": "zarr", "tensorstore": "tensorstore"}
    ways = [
        Way(name="plain write", program=f"{WAYS}:plain", arguments={**given, "sync": False}),
        Way(name="plain write, fsync", program=f"{WAYS}:plain", arguments={**given, "sync": True}),
        Way(name="genenc commit", program=f"{WAYS}:commit", arguments={**given, "chunk_rows": chunk}),
        *(
            Way(name=f"{words}, features alone, no fsync", program=f"{WAYS}:{program}", arguments=given)
            for words, program in libraries.items()
            if importlib.util.find_spec(program)
        ),
    ]
    ways = [
        Way(
            name=way.name, program=way.program, arguments={**way.arguments, "out": str(options.folder / f"{name}-{at}")}
        )
        for at, way in enumerate(ways)
    ]
    return Table(
        name=f"store-{name}",
        title=title,
        unit="shard",
        settings="A shard of one product with its five small arrays; a commit also makes checksums, two digests of "
        "each object, the record and its promotion, all fsynced. Files are removed again after each, which counts for "
        "all alike. The others write the one array, its chunks sharded and checksummed alike.",
        baselines=("plain write, fsync",),
        rows=tuple(compare(ways, options)),
    )


if __name__ == "__main__":
    suite.main("store", __doc__)

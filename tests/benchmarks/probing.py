"""Probes per second and core from a run's stored maps: CPU time of reading, computing and storing, each apart.

The maps are those of a ResNet-18 at 224 pixels, 512 x 7 x 7, drawn instead of encoded. Shards are done one after the
other, so that the process's CPU time is that of one stage at a time.

Run: `python tests/benchmarks/probing.py [--images 1024] [--points 1 20 200] [--maps float16]`.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]

import pictures
from genenc_core.probing import planning as probe_planning
from genenc_core.probing import probe
from genenc_core.probing.parameters import ProbeParameters
from genenc_core.run import planning, probe_source, probe_worker, worker
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.store import run_store

WIDTH, HEIGHT = 640, 480
SHARD_ROWS = 256
STAGES: tuple[tuple[str, type, str], ...] = (
    ("read", probe_source.Source, "read"),
    ("compute", probe_worker._ShardProbing, "take"),
    ("store", run_store.RunStore, "commit"),
)


def source(scratch: Path, images: int, stored: str) -> RunFolder:
    """Make a run of images that are links to one, and commit drawn maps."""
    (scratch / "photos").mkdir()
    one = pictures.write_folder(scratch / "one", 1, sizes=((WIDTH, HEIGHT),)) / "img_000.png"
    for number in range(images):
        (scratch / "photos" / f"{number:06d}.png").hardlink_to(one)
    given = {"model": "resnet18", "weights": "random:0", "device": "cpu", "fit": "pad", "shard_rows": SHARD_ROWS}
    run = planning.create_run(
        ExtractParameters.model_validate(
            {
                "images": str(scratch / "photos"),
                "out": str(scratch / "source"),
                "products": [f"maps=none@{stored}"],
                **given,
            }
        )
    )
    draw = np.random.default_rng(0)
    scale = run.preprocessing.width / WIDTH
    known = {
        "image_height": HEIGHT,
        "image_width": WIDTH,
        "image_orientation": 1,
        "image_affine": (scale, scale, 0, 28),
    }
    for shard in range(run.store.shard_count):
        start, stop = run.store.shard_range(shard)
        arrays = {}
        for array in run.store.plan.arrays:
            arrays[array.name] = block = np.empty((stop - start, *array.shape[1:]), array.dtype)
            block[:] = draw.standard_normal(block.shape, np.float32) if array.name == "maps" else known[array.name]
        details = {"unreadable": [], "points": {}, "seconds": {}}
        run.store.commit(shard, arrays, np.ones(stop - start, np.uint8), details=details)
    return run


def labelled(path: Path, images: int, points: int) -> Path:
    """Write labels of every image."""
    draw = np.random.default_rng(1)
    with path.open("w") as file:
        file.write("image,point,x,y\n")
        for number in range(images):
            xy = draw.uniform(0, 1, (points, 2)) * (WIDTH, HEIGHT)
            file.writelines(f"{number:06d}.png,p{at},{x:.1f},{y:.1f}\n" for at, (x, y) in enumerate(xy))
    return path


@contextlib.contextmanager
def timed(spent: Counter[str]) -> Iterator[None]:
    """Add the CPU seconds of each stage."""

    def wrapped(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any, **more: Any) -> Any:
            began = time.process_time()
            try:
                return work(*given, **more)
            finally:
                spent[name] += time.process_time() - began

        return done

    with contextlib.ExitStack() as patches:
        for name, owner, method in STAGES:
            patches.enter_context(mock.patch.object(owner, method, wrapped(name, getattr(owner, method))))
        yield


def measured(run: RunFolder, scratch: Path, labels: Path, product: str) -> dict[str, float]:
    """Probe a run; return CPU seconds by stage, of all together, and wall seconds."""
    given = ProbeParameters(
        source=run.root, out=str(scratch / f"probes-{time.time_ns()}"), points=str(labels), products=(product,)
    )
    probes = probe_planning.create(given)
    options = probe.options(probes)
    spent: Counter[str] = Counter()
    with timed(spent), worker.working(probes, options):
        worker.WORKERS.get(probes, options).prepare()
        cpu, wall = time.process_time(), time.perf_counter()
        outcome = worker.encode_shards(probes, range(probes.store.shard_count), options, lanes=1)
        assert not outcome.failures
        return {**spent, "all": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--points", type=int, nargs="+", default=[1, 20, 200])
    parser.add_argument("--products", default="cell,bilinear")
    parser.add_argument("--maps", default="float16")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        run = source(scratch, asked.images, asked.maps)
        mb = run.rows_of(range(run.store.shard_count)) * 512 * 49 * np.dtype(asked.maps).itemsize / 1e6
        sys.stdout.write(f"{asked.images} maps of 512 x 7 x 7 as {asked.maps}, {mb:.0f} MB; probes of 512 float32\n\n")
        sys.stdout.write(
            "| product | points an image | read | compute | store | read and computed / s and core | all / s and core |"
            " all / s |\n"
            "|---|---|---|---|---|---|---|---|\n"
        )
        for points in asked.points:
            labels = labelled(scratch / f"labels-{points}.csv", asked.images, points)
            count = asked.images * points
            for kind in asked.products.split(","):
                found = measured(run, scratch, labels, f"probes=spatial_point({kind})")
                each = " | ".join(f"{found[name] / count * 1e6:.2f} µs" for name in ("read", "compute", "store"))
                rates = (found["read"] + found["compute"], found["all"], found["wall"])
                said = " | ".join(f"{count / seconds:,.0f}" for seconds in rates)
                sys.stdout.write(f"| {kind} | {points} | {each} | {said} |\n")


if __name__ == "__main__":
    main()

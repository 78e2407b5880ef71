"""The whole path against its parts, side by side: bare forward, loading alone, a plain loop, and an extraction.

Run: python tests/benchmarks/end_to_end.py [--model resnet18] [--images 256] [--repeats 3]
CPU seconds are of the whole process, all threads; on a shared machine they are steadier than wall time.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import pictures
from genenc_core.export import backends
from genenc_core.images import loader, manifest, sources
from genenc_core.models import sources as models
from genenc_core.run import driver
from genenc_core.run.parameters import ExtractParameters

BATCH = 8


def main() -> None:
    """Measure every way in turn, several times, and print medians and ratios to the bare forward pass."""
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        photos = draw(Path(folder) / "photos", arguments.images)
        ways = make_ways(Path(folder), photos, arguments.model)
        for way in ways.values():
            way(0)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for repeat in range(1, arguments.repeats + 1):
            for name, way in ways.items():
                found[name].append(measured(way, repeat))
    rows = {name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in found.items()}
    base = rows["bare forward"]
    sys.stdout.write(f"{arguments.model}, {arguments.images} JPEG 500x375, batch {BATCH}, {os.cpu_count()} cores, ")
    sys.stdout.write(f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}\n\n")
    sys.stdout.write("| way | CPU ms / image | wall ms / image | CPU / bare | wall / bare |\n|---|---|---|---|---|\n")
    for name, (cpu, wall) in rows.items():
        per = [1000 * value / arguments.images for value in (cpu, wall)]
        sys.stdout.write(f"| {name} | {per[0]:.2f} | {per[1]:.2f} | {cpu / base[0]:.3f} | {wall / base[1]:.3f} |\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"arguments": vars(arguments), "seconds": rows}, indent=2) + "\n")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="also write the figures to this file")
    return parser.parse_args()


def draw(folder: Path, count: int) -> Path:
    """Write textured JPEG files of about 80 kB."""
    folder.mkdir()
    noise = torch.randint(-12, 13, (375, 500, 3), generator=torch.Generator().manual_seed(0)).numpy()
    for index in range(count):
        pixels = (pictures.texture(500, 375, index).astype(int) + noise).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index:05d}.jpg", quality=90)
    return folder


def make_ways(folder: Path, photos: Path, name: str) -> dict[str, Callable[[int], None]]:
    """Return the ways to be compared; each takes the number of its repeat."""
    built = models.build_encoder(models.ModelRequest(name=name, weights="random:0"))
    encoder = backends.eager_encoder(built)
    count = len(list(photos.iterdir()))
    height, width = encoder.input_size
    resident = torch.rand(BATCH, 3, height, width)
    listed = manifest.write_manifest(folder / "images.parquet", sources.open_source(str(photos)))
    size = built.preprocessing
    shorter = size.resize_short or min(height, width)
    transform = v2.Compose(
        [v2.Resize(shorter), v2.CenterCrop((height, width)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )

    def bare(_repeat: int) -> None:
        for _ in range(count // BATCH):
            encoder(resident)

    def loading(_repeat: int) -> None:
        with loader.ImageLoader(listed, size, threads=os.cpu_count() or 1) as images:
            assert all(image.pixels is not None for image in images.iter_rows(0, count))

    def plain(_repeat: int) -> None:
        files = sorted(photos.iterdir())
        for at in range(0, count, BATCH):
            batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in files[at : at + BATCH]])
            encoder(batch)["features"].mean((2, 3))

    def extraction(repeat: int) -> None:
        given = ExtractParameters(
            images=str(photos), model=name, weights="random:0", out=str(folder / f"run{repeat}"), batch_size=BATCH
        )
        assert driver.extract(given).status.complete

    return {"bare forward": bare, "loading alone": loading, "plain loop": plain, "extraction": extraction}


def measured(way: Callable[[int], None], repeat: int) -> tuple[float, float]:
    """Return CPU and wall seconds of one call."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    way(repeat)
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    main()

"""End-to-end check of a CUDA device in less than ten minutes: correctness first, then speed against a bare forward.

Run: python tests/benchmarks/gpu.py [--models convnext_tiny,vit_b_16] [--images 16384] [--out table.json]
It draws JPEG files, compares features on the device with the host's, and prints for each model: the bare forward
(compiled, bfloat16, pixels resident on the device), decoding alone, and an extraction from files to committed Zarr.
With --device cpu --precision float32 --eager it runs without a GPU, to try the script itself.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import zarr
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import pictures
from console import say
from genenc_core.encoding import engine
from genenc_core.images.load import loader
from genenc_core.images.sources import manifest
from genenc_core.run import driver, planning, precision, records, worker
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.system import limits

MODELS = "convnext_tiny,vit_b_16,convnext_base,vit_l_16"
DISTINCT = 1024
SECONDS = 540.0
ONE_MODEL = 110.0
COMPARED = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; rates in images per second."""

    model: str
    batch: int
    bare: float
    decode: float
    extraction: float
    error: str
    host_error: float

    @property
    def share(self) -> float:
        """The extraction's rate relative to the slower of forward and decoding."""
        return self.extraction / min(self.bare, self.decode)


def main() -> None:
    """Draw, compare, measure, print."""
    begun = time.monotonic()
    arguments = parsed()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        say(f"no CUDA device here (torch {torch.__version__}), so nothing was measured; --device cpu tries the script.")
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        photos = draw(Path(folder) / "photos", arguments.images)
        say(f"{machine(arguments.device)}; {arguments.images} JPEG 500x375, drawn in {time.monotonic() - begun:.0f} s")
        for name in arguments.models.split(","):
            if rows and time.monotonic() - begun > SECONDS - ONE_MODEL:
                say(f"{name}: left out, {SECONDS:.0f} s would not be enough")
                continue
            try:
                rows.append(measured(name, photos, Path(folder) / name, arguments))
            except Exception as error:  # the other models are still worth their time
                say(f"{name}: failed, {type(error).__name__}: {error}")
                continue
            say(json.dumps(dataclasses.asdict(rows[-1]) | {"share": round(rows[-1].share, 3)}))
    print_table(rows, arguments)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--images", type=int, default=16384)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--batch-size", type=int, default=512, help="0: found, within 2 %% of the images")
    parser.add_argument("--image-size")
    parser.add_argument("--scratch", help="where files are written; none: the system's temporary folder")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    return parser.parse_args()


def machine(device: str) -> str:
    """Describe the device and packages."""
    name = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else "CPU"
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"{name}, {os.cpu_count()} cores, {load}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def draw(folder: Path, count: int) -> Path:
    """Write textured JPEG files; beyond the first `DISTINCT` they are links to the same files."""
    folder.mkdir()
    distinct = min(count, DISTINCT)
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw_one, [folder] * distinct, range(distinct), chunksize=16))
    for index in range(distinct, count):
        os.link(folder / f"{index % distinct:06d}.jpg", folder / f"{index:06d}.jpg")
    return folder


def draw_one(folder: Path, index: int) -> None:
    """Write one file of about 80 kB."""
    noise = np.random.default_rng(index).integers(-12, 13, (375, 500, 3))
    pixels = (pictures.texture(500, 375, index).astype(int) + noise).clip(0, 255).astype("uint8")
    Image.fromarray(pixels).save(folder / f"{index:06d}.jpg", quality=90)


def measured(name: str, photos: Path, out: Path, arguments: argparse.Namespace) -> Row:
    """Measure one model."""
    out.mkdir()
    given = ExtractParameters(
        images=str(photos),
        model=name,
        weights="random:0",
        out=str(out / "run"),
        image_size=arguments.image_size,
        device=arguments.device,
        precision=arguments.precision,
        compile=not arguments.eager,
        batch_size=arguments.batch_size or "auto",
    )
    host_error = compared(given, out)
    run = planning.create_run(given)
    session = driver.Session(run, records.Options.of(given), command="extract")
    with worker.working(run, session.options):
        session.prepare()
        runner, _ = worker.WORKERS.get(run, session.options)._prepared()
        extraction = rate(run.store.plan.rows, lambda: session.encode_all(session.plan("pending")))
        # Its own thread: CUDA graphs belong to the thread that recorded them.
        bare = runner.call(lambda: bare_rate(runner.encoder, runner.sizer.size))
    decode = decode_rate(run)
    error = precision.describe(run) or "float32"
    batch = runner.sizer.size
    shutil.rmtree(out)
    return Row(
        model=name, batch=batch, bare=bare, decode=decode, extraction=extraction, error=error, host_error=host_error
    )


def compared(given: ExtractParameters, out: Path) -> float:
    """Return the largest relative difference |a - b| / |b| of float32 features between device and host.

    Raises:
        AssertionError: too far for rounding.
    """
    found = []
    for device in ("cpu", given.device):
        root = out / f"compared-{device.replace(':', '-')}"
        changes = {"out": str(root), "device": device, "limit": COMPARED, "precision": "float32", "compile": False}
        driver.extract(given.model_copy(update=changes | {"batch_size": 8}))
        group = zarr.open_group(root / "features.zarr", mode="r")
        assert (group["status"][:] == 1).all()
        found.append(group["features"][:].astype(np.float64))
    host, own = found
    error = float((np.linalg.norm(own - host, axis=1) / np.linalg.norm(host, axis=1)).max())
    assert error < 1e-4, f"features on {given.device} differ from the host's by {error:.2g}"
    return error


def rate(count: int, work: Callable[[], object]) -> float:
    """Return the images per second of one call."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def bare_rate(encoder: engine.Encoder, batch: int, *, seconds: float = 4.0) -> float:
    """Return the images per second of the run's own encoder on pixels resident on the device."""
    pixels = torch.randint(0, 256, (batch, 3, *encoder.input_size), dtype=torch.uint8, device=encoder.device)

    def run(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                encoder(pixels.float().div_(255.0))
        if encoder.device.type == "cuda":
            torch.cuda.synchronize(encoder.device)

    run(3)
    once = rate(1, lambda: run(2)) * 2
    times = max(int(seconds * once), 2)
    return rate(times * batch, lambda: run(times))


def decode_rate(folder: RunFolder) -> float:
    """Return the images per second of only reading, decoding and fitting, with a thread per core."""
    listed, workers = manifest.Manifest.open(folder.objects.root / "images.parquet"), limits.cores()
    count = min(listed.rows, 4096)
    with loader.ImageLoader(listed, folder.preprocessing, workers=workers) as images:

        def load() -> int:
            loaded = 0
            for batch in images.iter_batches(0, count):
                loaded += len(batch)
                batch.release()
            return loaded

        return rate(count, load)


def print_table(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Print a Markdown table, and write the results if requested."""
    say(f"\n{machine(arguments.device)}; {arguments.precision}{'' if arguments.eager else ', compiled'}\n")
    say(
        "| model | batch | bare img/s | decode img/s | extraction img/s | of the slower | precision | float32 vs host |"
    )
    say("|---|---|---|---|---|---|---|---|")
    for row in rows:
        rates = f"{row.bare:.0f} | {row.decode:.0f} | {row.extraction:.0f} | {row.share:.3f}"
        say(f"| {row.model} | {row.batch} | {rates} | {row.error} | {row.host_error:.1e} |")
    if arguments.out:
        found = {"machine": machine(arguments.device), "rows": [dataclasses.asdict(row) for row in rows]}
        Path(arguments.out).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

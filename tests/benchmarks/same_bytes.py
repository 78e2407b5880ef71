"""Whether `--reproducible` stores the same bytes with other instructions, batch sizes and threads, and what it costs.

Run: python tests/benchmarks/same_bytes.py [--only TEXT] [--json FILE] [--write genenc_core/TOLERANCE.md]
Each model encodes 64 drawn images in processes that differ in what limits the instructions of torch, oneDNN and MKL
(nothing; AVX2; SSE4 for oneDNN and MKL) and in threads (1, 2), each with batches of 1, 5 and 64. A run's bytes are
those of all its arrays of products. It ends with exit code 1 if the bytes of two reproducible runs differ, if a value
was not decided, or if the same runs without the option all agree, which would show nothing.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
import torch
import zarr
from PIL import Image

import pictures
import tolerance
from genenc_core import api
from genenc_core.models import resolve

MARKS = ("<!-- same bytes: begin -->\n", "<!-- same bytes: end -->")
IMAGES = 64
BATCHES = (1, 5, 64)
THREADS = (1, 2)
OWN = """
import torchvision
from torch import nn


def make():
    return nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-2])
"""
"""A module that may keep state, as far as genenc knows, so that all cores compute one batch."""
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"model": "resnet18", "image_size": 96},
    "timm/vit_tiny_patch16_224": {"model": "timm/vit_tiny_patch16_224", "image_size": 112},
    "own module": {"model": "own_resnet:make", "image_size": 96, "trust": True},
}
PRODUCTS = {
    "int8": ("features=global_avg_pool@int8",),
    "others": ("features=global_avg_pool@float32", "half=global_max_pool@float16", "maps=none@uint8"),
}
CASES = (
    ("resnet18", "int8"),
    ("own module", "others"),
    ("timm/vit_tiny_patch16_224", "int8"),
    ("timm/vit_tiny_patch16_224", "others"),
)
EVERYWHERE: dict[str, dict[str, str]] = {
    "all": {},
    "AVX2": tolerance.INSTRUCTIONS["AVX2"],
    # torch resizes otherwise without AVX2, so that such a machine is refused.
    "SSE": {**tolerance.INSTRUCTIONS["none"], "ATEN_CPU_CAPABILITY": "avx2"},
}


def main() -> None:
    """Run every model everywhere, write results and page, and fail where bytes differ."""
    warnings.simplefilter("ignore")
    arguments = parsed()
    if arguments.child:
        child(json.loads(arguments.child))
        return
    path = Path(arguments.json)
    known = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    for label, kind in () if arguments.render else CASES:
        if arguments.only in f"{label}, {kind}":
            known["rows"][f"{label}, {kind}"] = measured(label, kind)
            known["machine"] = tolerance.machine()
            path.write_text(json.dumps(known, indent=1) + "\n")
    if arguments.write:
        page = Path(arguments.write)
        page.write_text(in_page(page.read_text(encoding="utf-8"), known), encoding="utf-8")
    sys.stdout.write(table(known))
    sys.exit(any(not holds(row) for row in known["rows"].values()))


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows that hold this text: a model, and int8 or others")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page from the results")
    parser.add_argument("--json", default=str(Path(__file__).with_suffix(".json")), help="the results file")
    parser.add_argument("--write", default=str(tolerance.PAGE), help="the page; empty: none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(label: str, kind: str) -> dict[str, Any]:
    """Return what the runs of one model and some products stored."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos(folder / "photos")
        (folder / "own_resnet.py").write_text(OWN)
        found: list[dict[str, Any]] = []
        for where, environment in EVERYWHERE.items():
            for threads in THREADS:
                given = {"label": label, "kind": kind, "folder": name, "where": f"{where}-{threads}"}
                command = [sys.executable, __file__, "--child", json.dumps(given)]
                variables = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": name}
                done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
                found += json.loads(done.stdout.splitlines()[-1])
                sys.stderr.write(f"{label}, {kind}, {where}, {threads}: {found[-1]}\n")
    return summed(found)


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of all runs of one model."""
    exact = [run for run in found if run["reproducible"]]
    plain = [run for run in found if not run["reproducible"]]
    return {
        "runs": len(exact),
        "contents": len({run["sha256"] for run in exact}),
        "plain_runs": len(plain),
        "plain_contents": len({run["sha256"] for run in plain}),
        "again": [min(run["again"] for run in exact), max(run["again"] for run in exact)],
        "used": max(run["used"] for run in exact),
        "by_rule": max(run["by_rule"] for run in exact),
        "undecided": max(run["undecided"] for run in exact),
        "seconds": seconds(exact),
        "plain_seconds": seconds(plain),
    }


def seconds(runs: list[dict[str, Any]]) -> float:
    """Return the least seconds of the forward passes, products included, with all instructions and one thread."""
    return min(run["seconds"] for run in runs if run["where"] == "all-1")


def child(given: dict[str, str]) -> None:
    """Make the runs of one process; print what they stored."""
    folder = Path(given["folder"])
    options = dict(MODELS[given["label"]])
    weights = folder / "weights.pt"
    if not weights.is_file():
        name, size = str(options["model"]), options.get("image_size")
        asked = resolve.ModelRequest(
            name=name, weights="random:0", image_size=(size, size) if size else None, trust=True
        )
        # In a file, since random weights depend on the instructions.
        torch.save(resolve.build_parts(resolve.resolved(asked))[1].model.state_dict(), weights)
    found = []
    for reproducible in (False, True):
        for size in BATCHES if reproducible else BATCHES[-1:]:
            out = folder / f"{given['where']}-{size}-{reproducible}"
            run = api.extract(
                str(folder / "photos"),
                out=str(out),
                products=PRODUCTS[given["kind"]],
                weights=str(weights),
                batch_size=size,
                reproducible=reproducible,
                device="cpu",
                decode_workers=1,
                shard_rows=IMAGES,
                **options,
            )
            found.append({"where": given["where"], "batch": size, "reproducible": reproducible, **stored(run, out)})
    sys.stdout.write(json.dumps(found) + "\n")


def stored(run: api.Run, out: Path) -> dict[str, Any]:
    """Return a digest of a run's products, and how they were decided."""
    group = zarr.open_group(out / "features.zarr", mode="r")
    digest = hashlib.sha256()
    for name, array in sorted(group.arrays()):
        if name.startswith(("features", "unsigned", "half", "maps")) and isinstance(array, zarr.Array):
            digest.update(name.encode() + np.ascontiguousarray(array[:]).tobytes())
    details = json.loads((out / "_txn" / "commits" / "s0000000.json").read_text())["details"]
    decided = details.get("reproducible") or {"again": 0, "used": 0.0, "by_rule": 0, "undecided": 0}
    if run.status().ok != IMAGES:
        raise SystemExit(f"{out}: {run.status()}")
    return {
        "sha256": digest.hexdigest(),
        "seconds": details["seconds"]["encode"] + details["seconds"]["reduce"],
        **{name: decided[name] for name in ("again", "used", "by_rule", "undecided")},
    }


def photos(folder: Path) -> None:
    """Write drawn images: JPEGs and PNGs of several sizes, among them black, white and grey ones."""
    folder.mkdir()
    for index in range(IMAGES):
        pixels = pictures.texture((320, 240, 500)[index % 3], (240, 320, 375)[index % 3], index).copy()
        if index % 16 < 3:
            pixels[:] = (0, 128, 255)[index % 16]
        form = ("png", "jpeg")[index % 2]
        Image.fromarray(pixels).save(folder / f"{index:03d}.{form}", form)


def holds(row: dict[str, Any]) -> bool:
    """Return whether a row shows what it is meant to."""
    return row["contents"] == 1 and row["undecided"] == 0 and row["plain_contents"] > 1


def table(known: dict[str, Any]) -> str:
    """Return the results as a table."""
    lines = [
        f"Measured on {known.get('machine', 'nothing yet')}; times with one thread, all instructions.",
        "",
        "| model, products | runs, contents | without the option | in float64 | of the margin | by rule | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in known["rows"].items():
        least, most = (100 * count / IMAGES for count in row["again"])
        share = f"{least:.0f} %" if least == most else f"{least:.0f} to {most:.0f} %"
        lines.append(
            f"| {name} | {row['runs']}, {row['contents']} | {row['plain_runs']}, {row['plain_contents']} | {share} | "
            f"{100 * row['used']:.0f} % | {row['by_rule']} | {row['seconds'] / row['plain_seconds']:.1f} x |"
        )
    return "\n".join(lines) + "\n"


def in_page(page: str, known: dict[str, Any]) -> str:
    """Return the page with the table between its marks."""
    begin, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    return page[:begin] + table(known) + page[end:]


if __name__ == "__main__":
    main()

"""`genenc extract --canvas`: tiles from the command line and a file, what is said of them, and what is refused."""

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import forked
import pictures

Call = Callable[..., Any]
TILES = ["--canvas", "64x96", "--tile-overlap", "16", "--tile-trim", "8", "--tile-blend", "average"]


def objects(root: Path) -> dict[str, bytes]:
    store = root / "features.zarr"
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_large_images_with_points_and_what_is_said_of_them(
    genenc: Call, photos: Path, tiny: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "points.csv").open("w", newline="") as file:
        rows = [(f"img_{index:03d}.png", "tip", 40, 30) for index in range(6)]
        csv.writer(file).writerows([("image", "point", "x", "y"), *rows])
    run = tmp_path / "run"
    said = genenc("extract", photos, *tiny, *TILES, "--points", tmp_path / "points.csv", "--maps", "--out", run)
    assert (said.code, said.err) == (0, "")
    assert "6 of 6 images stored" in said.out
    assert "points: 6 ok" in said.out
    store = zarr.open_group(run / "features.zarr", mode="r")
    assert store["maps"].shape == (6, 6, 8, 12)
    # The middle of the image is the middle of the canvas: nearest cell 4, 6 of the stitched map.
    np.testing.assert_allclose(store["probes"][:, 0], store["maps"][:, :, 4, 6], atol=1e-3)
    assert "tiles          3 x 5 of 32 x 32, overlap 16, trim 8, blend average\n" in genenc("info", run).out
    identity = json.loads(genenc("info", run, "--json").out)["identity"]
    assert identity["tiles"] == {"size": [32, 32], "overlap": 16, "trim": 8, "blend": "average"}
    assert (
        "nothing to do"
        in genenc("extract", photos, *tiny, *TILES, "--points", tmp_path / "points.csv", "--maps", "--out", run).out
    )
    other = genenc("extract", photos, *tiny, "--canvas", "64x96", "--points", tmp_path / "points.csv", "--out", run)
    assert other.code == 2
    assert "tiles.overlap: 16 -> 8" in other.err


def test_a_config_file_names_tiles_as_the_flags_do(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('canvas = 64\ntile_overlap = 16\n"tile-blend" = "none"\n')
    said = genenc("extract", photos, *tiny, "--config", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert said.code == 0
    assert "3 x 3 of 32 x 32, overlap 16, trim 0, blend none" in genenc("info", tmp_path / "run").out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tile-overlap", "16"], "--tile-overlap 16 has no effect without tiles: add --canvas HxW"),
        (["--canvas", "64", "--tile-overlap", "-8"], "--tile-overlap -8 is not valid"),
        (["--canvas", "64", "--tile-trim", "-8"], "--tile-trim -8 is not valid"),
        (
            ["--canvas", "64", "--tile-trim", "8"],
            "--tile-trim 8 is out of range: it must be 0 to half the overlap of 8",
        ),
        (["--canvas", "64x"], "canvas '64x' is not of the form H or HxW"),
        (["--canvas", "16"], "canvas of 16 x 16 pixels is smaller than the model's input of 32 x 32"),
        (["--canvas", "70x90"], "use 64x88 or 72x96"),
        (["--canvas", "64", "--tile-overlap", "32"], "--tile-overlap 32 is out of range: it must be 0 to 24 pixels"),
        (["--canvas", "64", "--tile-overlap", "9"], "--tile-overlap 9 is not a multiple"),
    ],
)
def test_tiles_that_cannot_be_are_refused_in_one_paragraph(
    genenc: Call, photos: Path, tiny: list[str], tmp_path: Path, options: list[str], said: str
) -> None:
    answer = genenc("extract", photos, *tiny, *options, "--out", tmp_path / "run")
    assert answer.code == 2
    assert said in " ".join(answer.err.split())
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_and_resumed_a_tiled_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    photos = pictures.write_folder(tmp_path / "photos", 24)
    command = [
        sys.executable,
        "-m",
        "genenc_flows.entry",
        "extract",
        str(photos),
        "--plain",
        "--model",
        "tiny_models:conv",
    ]
    command += ["--weights", "random:0", "--image-size", "32", "--canvas", "96x128", "--tile-overlap", "16", "--maps"]
    command += ["--shard-rows", "2", "--batch-size", "8", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(pictures.__file__).parent), "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    forked.run([*command, "--out", str(whole)], env=environment, check=True, capture_output=True)
    with forked.Popen([*command, "--out", str(killed)], env=environment, stdout=forked.DEVNULL) as process:
        commits = killed / "_txn" / "commits"
        while process.poll() is None and not (commits.exists() and len(list(commits.glob("s*.json"))) >= 3):
            time.sleep(0.001)
        was_running = process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert was_running
    assert len(list(commits.glob("s*.json"))) < 12
    resume = [sys.executable, "-m", "genenc_flows.entry", "resume", str(killed), "--plain"]
    done = forked.run(resume, env=environment, check=True, capture_output=True, text=True)
    assert "24 of 24 images stored" in done.stdout
    assert objects(killed) == objects(whole)

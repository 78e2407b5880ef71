"""The commands: what they do, what they say, and their exit codes."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

import forked
import pictures
from genenc_core import spec
from genenc_core.cli import demo, demo_data

Call = Callable[..., Any]
DIGITS = "9" * 5000


def status_of(root: Path) -> np.ndarray:
    return zarr.open_group(root / "features.zarr", mode="r")["status"][:]


@pytest.mark.slow
def test_extract_status_verify_info(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = genenc("extract", photos, *tiny, "--out", run, "--shard-rows", 4)
    assert (said.code, said.err) == (0, "")
    assert "6 of 6 images stored in 2 of 2 shards\nlimited by " in said.out
    assert str(run / "features.zarr") in said.out
    again = genenc("extract", photos, *tiny, "--out", run)
    assert again.code == 0
    assert "nothing to do" in again.out
    status = genenc("status", run).out
    assert status.startswith("6 of 6 images stored in 2 of 2 shards\nlimited by ")
    assert "\ncounted from the commit records" in status
    assert "2 shards checked: intact" in genenc("verify", run, "--content").out
    told = genenc("info", run).out
    assert "python/tiny_models:conv (eager)" in told
    assert "normalization  mean [0.0, 0.0, 0.0], std [1.0, 1.0, 1.0], inside the model" in told
    assert genenc("resume", run).code == 0


def test_json_is_one_document(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (photos / "img_001.png").write_bytes(b"")
    said = genenc("extract", photos, *tiny, "--out", run, "--json")
    found = json.loads(said.out)
    assert said.code == 3
    assert (found["ok"], found["unreadable"], found["complete"], found["asked"]) == (5, 1, True, 1)
    assert [item["image_id"] for item in found["unreadable_images"]] == ["img_001.png"]
    status = json.loads(genenc("status", run, "--json").out)
    assert status["shard_rows"][0]["state"] == "committed"
    for limit in (found["bound"], status["bound"]):
        assert limit["stage"] in limit["shares"]
        assert 0 <= limit["share"] <= 1
    assert found["bound"]["stage"] == status["bound"]["stage"]
    assert json.loads(genenc("verify", run, "--json").out)["ok"] is True
    assert json.loads(genenc("info", run, "--json").out)["identity"]["images"]["rows"] == 6


def mixed_folder(folder: Path) -> set[str]:
    """Write one file of every awkward kind; return the names of those that cannot be read."""
    folder.mkdir()
    photo = Image.fromarray(pictures.texture(120, 90, 0))
    photo.save(folder / "a_plain.jpg")
    Image.fromarray(pictures.texture(40, 200, 1)).save(folder / "b_tall.png")
    jpeg = io.BytesIO()
    photo.save(jpeg, "JPEG")
    (folder / "c_truncated.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / "d_empty.JPG").write_bytes(b"")
    (folder / "e_page.jpg").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    Image.fromarray((np.arange(90 * 120).reshape(90, 120) * 6).astype(np.uint16)).save(folder / "f_deep.png")
    photo.quantize(16).save(folder / "g_palette.gif")
    photo.convert("CMYK").save(folder / "h_cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "i_rotated.jpg", exif=exif)
    return {"c_truncated.jpg", "d_empty.JPG", "e_page.jpg"}


def test_awkward_files_are_one_row_each(genenc: Call, tiny: list[str], tmp_path: Path) -> None:
    broken = mixed_folder(tmp_path / "mixed")
    run = tmp_path / "run"
    said = genenc("extract", tmp_path / "mixed", *tiny, "--out", run)
    assert said.code == 3
    store = zarr.open_group(run / "features.zarr", mode="r")
    names = list(store["image_id"][:])
    assert len(names) == 9
    assert {name for name, state in zip(names, store["status"][:], strict=True) if state == 2} == broken
    for name in broken:
        assert re.search(rf"row \d: {re.escape(name)}: .+", said.out)
    good = store["status"][:] == 1
    assert np.isfinite(store["features"][:][good]).all()
    assert np.isnan(store["features"][:][~good]).all()
    rotated = names.index("i_rotated.jpg")
    assert (store["image_height"][rotated], store["image_width"][rotated], store["image_orientation"][rotated]) == (
        120,
        90,
        6,
    )


def test_too_many_failures_fail_the_shard_and_say_how_to_go_on(
    genenc: Call, photos: Path, tiny: list[str], tmp_path: Path
) -> None:
    (photos / "img_005.png").write_bytes(b"")
    run = tmp_path / "run"
    said = genenc("extract", photos, *tiny, "--out", run, "--shard-rows", 3, "--max-failures", 0)
    assert said.code == 1
    assert "shard 00001: more than 0 of 3 images failed (img_005.png: " in said.err
    assert "genenc resume" in said.out
    assert list(status_of(run)) == [1, 1, 1, 0, 0, 0]
    status = genenc("status", run)
    assert status.code == 1
    assert "failed shards: 1" in status.out
    resumed = genenc("resume", run, "--shards", "failed", "--max-failures", "1")
    assert resumed.code == 3
    assert list(status_of(run)) == [1, 1, 1, 1, 1, 2]
    assert "failed shards" not in genenc("status", run).out


def test_non_finite_features_are_a_failed_row(genenc: Call, photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(photos / "black.png")
    said = genenc(
        *("extract", photos, "--model", "tiny_models:nan_for_dark", "--weights", "random:0", "--image-size", "32"),
        *("--out", tmp_path / "run"),
    )
    assert said.code == 3
    assert "black.png: the encoder returned NaN or infinite values" in said.out


def test_a_value_too_large_for_float16_is_refused_not_stored(genenc: Call, photos: Path, tmp_path: Path) -> None:
    said = genenc(
        *("extract", photos, "--model", "tiny_models:huge", "--weights", "random:0", "--image-size", "32"),
        *("--dtype", "float16", "--out", tmp_path / "run"),
    )
    assert said.code == 1
    assert "overflows float16" in said.err
    assert "@float32" in said.err


HEADER = ("image", "point", "x", "y")
Row = tuple[object, ...]


def points_file(path: Path, rows: list[Row], header: Row = HEADER) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_points_and_two_products_from_one_pass(genenc: Call, photos: Path, tmp_path: Path) -> None:
    points = points_file(tmp_path / "p.csv", [("img_000.png", "paw", 10, 10), ("img_001.png", "paw", 500, 5)])
    run = tmp_path / "run"
    said = genenc(
        *("extract", photos, "--model", "tiny_models:two_maps", "--weights", "random:0", "--image-size", "32"),
        *("--points", points, "--out", run, "--product", "paws=coarse:spatial_point(bilinear)@float16"),
        *("--product", "mean=fine:global_avg_pool(bars)", "--maps"),
    )
    assert said.code == 0
    assert "points: 1 ok, 4 no such point, 1 outside image" in said.out
    store = zarr.open_group(run / "features.zarr", mode="r")
    assert (store["paws"].shape, store["paws"].dtype) == ((6, 1, 8), np.float16)
    assert store["mean"].shape == (6, 4)
    assert (store["maps_fine"].shape, store["maps_coarse"].shape) == ((6, 4, 8, 8), (6, 8, 4, 4))
    assert list(store["point_status"][:, 0]) == [1, 5, 4, 4, 4, 4]
    np.testing.assert_allclose(store["maps_fine"][:].mean((2, 3)), store["mean"][:], atol=2e-3)


@pytest.mark.parametrize("kind", ["list", "glob", "parquet"])
def test_kinds_of_image_sources(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path, kind: str) -> None:
    import pyarrow
    from pyarrow import parquet

    names = ["img_004.png", "img_001.png", "gone.png"]
    images: object = f"{photos}/img_*.png"
    if kind == "list":
        images = points_file(photos / "list.csv", [(name,) for name in names], ("image",))
    elif kind == "parquet":
        images = photos / "list.parquet"
        parquet.write_table(pyarrow.table({"file": names}), images)
    run = tmp_path / "run"
    said = genenc("extract", images, *tiny, "--out", run)
    stored = list(zarr.open_group(run / "features.zarr", mode="r")["image_id"][:])
    if kind == "glob":
        assert (said.code, len(stored)) == (0, 6)
    else:
        assert (said.code, stored) == (3, names)
        assert "gone.png: " in said.out


def test_config_file_with_flags_on_top(genenc: Call, photos: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'model = "tiny_models:conv"\nweights = "random:0"\nimage_size = "32"\n'
        'limit = 2\nproducts = ["v=global_avg_pool"]\n'
    )
    said = genenc("extract", photos, "--config", config, "--trust", "--out", tmp_path / "run", "--limit", 3)
    assert said.code == 0
    assert zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")["v"].shape == (3, 6)
    config.write_text("modle = 1\n")
    said = genenc("extract", photos, "--config", config, "--model", "m", "--out", tmp_path / "other")
    assert (said.code, "modle" in said.err) == (2, True)


@pytest.mark.slow
def test_export_then_extract_by_spec(genenc: Call, photos: Path, tmp_path: Path) -> None:
    arguments = ("export", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--out", tmp_path / "m")
    said = genenc(*arguments)
    assert said.code == 0
    assert "largest relative error 0.0e+00 (allowed 1e-05)" in said.out
    (path,) = (tmp_path / "m").glob("*_spec.json")
    assert spec.load_spec(path).outputs[0].shape == (6, 4, 4)
    assert "output   features [6, 4, 4]" in genenc("info", path).out
    assert genenc("extract", photos, "--model", path, "--out", tmp_path / "run").code == 0
    assert json.loads(genenc(*arguments, "--json").out)[0]["spec"] == str(path)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"images": "nowhere"}, 2, "nowhere"),
        ({"--model": "resnet81"}, 2, "resnet18"),
        ({"--model": "tiny_models:cnov"}, 2, "cnov"),
        ({"--model": "absent_spec.json"}, 2, "Failed to open"),
        ({"--weights": "random:x"}, 2, "random:x"),
        ({"--weights": "gone.pt"}, 2, "gone.pt"),
        ({"--image-size": "0"}, 2, "out of range"),
        ({"--image-size": "12x"}, 2, "H or HxW"),
        ({"--image-size": "99999"}, 2, "16384"),
        ({"--limit": "0"}, 2, "at least 1"),
        ({"--shard-rows": "0"}, 2, "at least 1"),
        ({"--batch-size": "0"}, 2, "--batch-size '0'"),
        ({"--batch-size": "many"}, 2, "--batch-size 'many'"),
        ({"--batch-size": DIGITS}, 2, "give auto or a number"),
        ({"--image-size": DIGITS}, 2, "H or HxW"),
        ({"--canvas": DIGITS}, 2, "H or HxW"),
        ({"--layers": DIGITS}, 2, "no layer"),
        ({"--weights": f"random:{DIGITS}"}, 2, "too long"),
        ({"--weights": "random:9223372036854775808"}, 2, "the seed of random:SEED must be"),
        ({"images": ""}, 2, "argument is empty"),
        ({"--weights": ""}, 2, "--weights is empty"),
        ({"images": "n" * 300}, 2, "too long; give a shorter one"),
        ({"--points": "photos"}, 2, "is neither a DeepLabCut project"),
        ({"--max-failures": "lots"}, 2, "invalid max failures"),
        ({"--max-failures": "101%"}, 2, "out of range"),
        ({"--device": "tpu"}, 2, "tpu"),
        ({"--device": "cuda:7"}, 2, "cuda:7"),
        ({"--fit": "squash"}, 2, "fit"),
        ({"--decode": "half"}, 2, "decode"),
        ({"--dtype": "int4"}, 2, "dtype"),
        ({"--chunk-channels": "4000"}, 2, "divides nothing"),
        ({"--chunk-channels": "0"}, 2, "chunk-channels"),
        ({"--backend": "tensorrt"}, 2, "backend"),
        ({"--product": "status=none"}, 2, "reserved by the store"),
        ({"--product": "a=global_avg_pool+spatial_point"}, 2, "--points"),
        ({"--product": "a=global_avg_pool+global_avg_pool"}, 2, "needs a feature map"),
        ({"--product": "a=other:none"}, 2, "it has features"),
        ({"--points": "gone.csv"}, 2, "gone.csv"),
        ({"--config": "gone.toml"}, 2, "gone.toml"),
        ({"--out": "photos/img_000.png"}, 2, "is a file"),
        ({"--out": "photos"}, 2, "not a run folder"),
        ({"--out": "/proc/run"}, 2, "cannot be written"),
        ({"--trust": "--nonsense"}, 2, "nonsense"),
    ],
)
def test_wrong_input_is_one_paragraph_and_leaves_nothing(
    genenc: Call, photos: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], code: int, words: str
) -> None:
    tmp_path = photos.parent
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    options = {"--model": "tiny_models:conv", "--weights": "random:0", "--image-size": "32", "--out": "run"}
    options |= {key: value for key, value in change.items() if key != "images"}
    said = genenc("extract", change.get("images", "photos"), *(item for pair in options.items() for item in pair))
    assert said.code == code
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        ("extract", "photos", "--model", "tiny_models:conv", "--out", "run", "--batch-size", "many"),
        ("extract", "photos", "--model", "tiny_models:conv", "--out", "run", "--layers", ",,"),
        ("extract", "photos", "--model", "general_encoder", "--out", "run", "--output-shape", DIGITS),
        ("export", "tiny_models:conv", "--out", "model", "--layers", ",,"),
        ("export", "tiny_models:conv", "--out", "model", "--variants", DIGITS),
        ("export", "tiny_models:conv", "--out", "model", "--batch-max", "9" * 18),
        ("status", "n" * 300),
    ],
)
def test_wrong_usage_is_a_document_too(
    genenc: Call, photos: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, ...]
) -> None:
    monkeypatch.chdir(photos.parent)
    said = genenc(*change, "--json")
    assert (said.code, json.loads(said.out)["exit_code"]) == (2, 2)


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([("img_000.png", "paw", 1)], ("image", "point", "x"), "'y'"),
        ([("img_000.png", "paw", "left", 1)], ("image", "point", "x", "y"), "left"),
        ([("img_999.png", "paw", 1, 1)], ("image", "point", "x", "y"), "img_999.png"),
        ([("img_000.png", "paw", 1, 1)] * 2, ("image", "point", "x", "y"), "paw"),
    ],
)
def test_wrong_points_are_refused(
    genenc: Call, photos: Path, tiny: list[str], rows: list[Row], header: Row, words: str
) -> None:
    tmp_path = photos.parent
    points = points_file(tmp_path / "p.csv", rows, header)
    said = genenc("extract", photos, *tiny, "--points", points, "--out", tmp_path / "run")
    assert said.code == 2
    assert words in said.err
    assert not (tmp_path / "run").exists()


def test_spec_with_a_missing_or_changed_artifact_is_refused(genenc: Call, photos: Path, tmp_path: Path) -> None:
    genenc("export", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--out", tmp_path / "m")
    (path,) = (tmp_path / "m").glob("*_spec.json")
    (artifact,) = (tmp_path / "m").glob("*.pt")
    good = artifact.read_bytes()
    artifact.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    said = genenc("extract", photos, "--model", path, "--out", tmp_path / "run")
    assert (said.code, "is not the one its spec was written for" in said.err) == (2, True)
    artifact.unlink()
    said = genenc("extract", photos, "--model", path, "--out", tmp_path / "run")
    assert (said.code, artifact.name in said.err) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["status", "verify", "info", "resume"])
def test_a_folder_that_is_no_run_is_said_so(genenc: Call, photos: Path, command: str) -> None:
    said = genenc(command, photos)
    assert said.code == 2
    assert "not a run folder" in said.err


def test_verify_finds_a_flipped_bit(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    genenc("extract", photos, *tiny, "--out", run)
    victim = next((run / "features.zarr" / "features").glob("c*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    said = genenc("verify", run)
    assert said.code == 1
    assert "shard 0 rows 0-5 features/c.0" in said.out
    assert genenc("verify", run, "--json").code == 1


@pytest.mark.slow
def test_repair_then_resume_makes_a_damaged_run_whole(
    genenc: Call, photos: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    genenc("extract", photos, *tiny, "--out", run, "--shard-rows", "2", "--batch-size", "2")
    data = run / "features.zarr" / "features" / "c.1.0"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    (run / "features.zarr" / "features" / "zarr.json").write_text("{}")
    said = genenc("verify", run, "--repair")
    assert said.code == 0
    assert "restored: features/zarr.json" in said.out
    assert "to be encoded again: shards 1" in said.out
    assert genenc("status", run).code == 1
    assert genenc("resume", run).code == 0
    assert data.read_bytes() == whole
    assert "3 shards checked: intact" in genenc("verify", run, "--content").out
    assert json.loads(genenc("verify", run, "--repair", "--json").out)["repaired"] is None


def test_names_cannot_steer_the_terminal(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> None:
    (photos / "evil\x1b[31m\n.png").write_bytes(b"")
    said = genenc("extract", photos, *tiny, "--out", tmp_path / "run")
    assert said.code == 3
    assert "\x1b" not in said.out
    assert "evil\\x1b[31m\\n.png" in said.out


def slow_extraction(tmp_path: Path, *, images: int, shard_rows: int, batch_size: int) -> "subprocess.Popen[str]":
    """Start the command on drawn images with a model that takes its time, into `tmp_path`/run."""
    photos = pictures.write_folder(tmp_path / "photos", images)
    command = [
        sys.executable,
        "-m",
        "genenc_flows.entry",
        "extract",
        str(photos),
        "--plain",
        "--out",
        str(tmp_path / "run"),
    ]
    command += ["--model", "tiny_models:slow", "--weights", "random:0", "--image-size", "32"]
    command += ["--shard-rows", str(shard_rows), "--batch-size", str(batch_size)]
    environment = {**os.environ, "PYTHONPATH": str(Path(pictures.__file__).parent)}
    return forked.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_at_a_whole_shard_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    with slow_extraction(tmp_path, images=60, shard_rows=2, batch_size=1) as process:
        while process.poll() is None and not list((run / "_txn" / "commits").glob("s*.json")):
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert re.search(r"stopped: \d+ of 30 shards are stored; continue with: genenc resume", said)
    states = status_of(run).reshape(30, 2)
    assert 0 < (states == 1).all(axis=1).sum() < 30
    assert ((states == 1).all(axis=1) | (states == 0).all(axis=1)).all()


@pytest.mark.slow
def test_demo_from_nothing(genenc: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that is forty times as fast; CI runs the demo as it is."""
    monkeypatch.setattr(demo, "MODEL", "shufflenet_v2_x0_5")
    said = genenc("demo", "--out", tmp_path / "demo")
    assert said.code == 0
    assert "47 of 48 images stored" in said.out
    assert f"row 12: {demo_data.BROKEN}: " in said.out
    assert "3 shards checked: intact" in said.out
    assert np.isnan(zarr.open_group(tmp_path / "demo" / "run" / "features.zarr")["probes"][12]).all()
    assert genenc("demo", "--out", tmp_path / "demo").code == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert genenc("demo", "--out", tmp_path / "full").code == 2


@pytest.mark.slow
def test_the_demo_draws_the_same_images_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        demo_data.draw_dataset(tmp_path / name, count=13)
    first, second = (sorted((tmp_path / name).rglob("*.*")) for name in ("one", "two"))
    assert len(first) == 14
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.slow
def test_reading_commands_import_neither_torch_nor_prefect() -> None:
    """It takes seconds, and in a working directory that was deleted torch ends the process."""
    code = "import sys; from genenc_core.cli import state; from genenc_core.run import status; "
    code += "print([name for name in ('torch', 'prefect') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick_to_import() -> None:
    """`genenc --help` must not import torch, Prefect or zarr."""
    code = "import sys; from genenc_core.cli import app; from genenc_flows import entry; "
    code += "app.build_app(entry.FlowRunner()); "
    code += "heavy = ('torch', 'prefect', 'zarr', 'pyarrow', 'numpy', 'pydantic', 'asyncio'); "
    code += "print([name for name in heavy if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('modle = "x"', "unknown option 'modle'; did you mean 'model'"),
        ("limit = [", "is not TOML"),
        ('limit = "three"', "--limit 'three' is not valid"),
        ('fit = "zoom"', "--fit 'zoom' is not valid: give 'stretch', 'crop' or 'pad'"),
        ("decode-workers = 100000", "--decode-workers 100000 is not valid"),
        ("product = 3", 'it should be a list, such as ["a", "b"]'),
        ('models = "specs"', "it should be a list"),
    ],
)
def test_wrong_config_is_said_in_the_options_words(
    genenc: Call, photos: Path, tiny: list[str], text: str, words: str
) -> None:
    config = photos.parent / "run.toml"
    config.write_text(text + "\n")
    said = genenc("extract", photos, *tiny, "--config", config, "--out", photos.parent / "run")
    assert said.code == 2
    assert words in said.err
    assert not (photos.parent / "run").exists()


def test_config_takes_numbers_and_the_flags_names(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('image_size = 24\nmax-failures = 3\nproduct = ["v=global_avg_pool"]\n')
    model = ["--model", "tiny_models:conv", "--weights", "random:0"]
    assert genenc("extract", photos, *model, "--config", config, "--out", tmp_path / "run").code == 0
    assert "stretch to 24 x 24" in genenc("info", tmp_path / "run").out


def test_huge_shards_are_as_large_as_the_run(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> None:
    said = genenc("extract", photos, *tiny, "--shard-rows", 10**19, "--out", tmp_path / "run")
    assert said.code == 0
    assert "in 1 of 1 shard\n" in said.out


def test_a_factory_without_weights_is_the_same_every_time(genenc: Call, photos: Path, tmp_path: Path) -> None:
    command = ("extract", photos, "--model", "tiny_models:conv", "--image-size", "32", "--out", tmp_path / "run")
    assert genenc(*command).code == 0
    assert "nothing to do" in genenc(*command).out


def test_version_and_unwritable_schema(genenc: Call, tmp_path: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+( \([0-9a-f]{12}(, modified)?\))?\n", genenc("--version").out)
    assert json.loads(genenc("schema", "emb").out)["title"] == "Zarr convention emb:, version 1"
    said = genenc("schema", "--out", tmp_path / "absent" / "x.json")
    assert (said.code, "cannot be written" in said.err) == (2, True)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with slow_extraction(tmp_path, images=200, shard_rows=50, batch_size=50) as process:
        while process.poll() is None and not list((run / "provenance").glob("runs/*.json")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "terminate called" not in said


def test_json_is_one_document_when_things_go_wrong_too(
    genenc: Call, photos: Path, tiny: list[str], tmp_path: Path
) -> None:
    refused = genenc("extract", photos, "--model", "resnet81", "--out", tmp_path / "no", "--json")
    assert json.loads(refused.out)["exit_code"] == refused.code == 2
    (photos / "img_000.png").write_bytes(b"")
    said = genenc("extract", photos, *tiny, "--out", tmp_path / "run", "--max-failures", "0", "--json")
    (failure,) = json.loads(said.out)["failures"]
    assert (said.code, failure["shard"], "img_000.png" in failure["reason"]) == (1, 0, True)
    assert json.loads(genenc("status", tmp_path / "run", "--json").out)["failed"] == [0]
    assert json.loads(genenc("status", photos, "--json").out)["exit_code"] == 2


@pytest.mark.parametrize("option", ["--points", "--model", "--limit", "--fit", "--out"])
def test_an_option_that_counts_once_is_refused_when_given_twice(
    genenc: Call, photos: Path, tmp_path: Path, option: str
) -> None:
    """Never the last one alone."""
    said = genenc("extract", photos, "--out", tmp_path / "run", option, "one", f"{option}=two")
    assert said.code == 2
    assert f"{option} is given more than once, as " in said.err
    assert "'one' and 'two'" in said.err
    assert not (tmp_path / "run").exists()

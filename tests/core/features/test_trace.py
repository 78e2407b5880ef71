"""A trace says what is recorded of one row, as the records say it, and names what no record says."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import s3_server
from genenc_core import api, errors
from genenc_core.run import driver
from genenc_core.run.parameters import Changes
from genenc_core.store.backends.objects import open_objects

Call = Callable[..., api.Run]
EARLIER = Path(__file__).parents[1] / "run" / "earlier_runs.zip"


def run_channels(run: api.Run) -> int:
    return int(run.arrays().features.shape[1])


@pytest.mark.slow
def test_what_is_recorded(
    extract: Call, photos: Path, labels: Path, tmp_path: Path, unchanged: Callable[[Path], Callable[[], None]]
) -> None:
    (tmp_path / "boxes.csv").write_text(
        "image,x,y,width,height,category\nimg_000.png,0,0,9,9,bug\nimg_006.png,5,6,20,10,mouse\n"
        "img_006.png,200,6,20,10,mouse\n"
    )
    products = ("features=global_avg_pool@int8", "probes=spatial_point(cell)", "regions=region_mean")
    run = extract("run", *products, points=str(labels), regions=[str(tmp_path / "boxes.csv")])
    check = unchanged(tmp_path / "run")
    found = api.trace(tmp_path / "run", "img_006.png")
    check()
    file = photos / "img_006.png"
    assert found.image["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (found.image["row"], found.image["path"], found.image["bytes"]) == (6, str(file), file.stat().st_size)
    assert found.image["file_now"] == "of the same size and time"
    assert (found.state["status"], found.state["width"], found.state["height"]) == ("ok", 80, 60)
    arrays = run.arrays()
    assert found.state["points"]["tail"]["x"] == float(arrays.point_x[6, 1])
    inside, outside = found.state["regions"].values()
    assert inside == {"box": [5.0, 6.0, 25.0, 16.0], "category": "mouse", "place": 2, "status": "ok"}
    assert (outside["place"], outside["status"]) == (3, "outside_image")
    assert found.transform["affine"] == arrays.image_affine.values[6].tolist()
    assert found.model["weights_sha256"] == run.identity["weights"]
    record = run.folder.store.record(1)
    assert record is not None
    assert (found.commit["shard"], found.commit["rows"], found.commit["attempt"]) == (1, [4, 8], record.attempt)
    assert found.commit["batch_sizes"] == {"1": 1, "3": 1}
    item = next(item for item in record.objects if item.key.startswith("probes/"))
    assert found.products["probes"]["digest"] == item.digest
    assert (tmp_path / "run" / found.products["probes"]["object"]).stat().st_size == item.size
    assert (found.products["features"]["dtype"], found.products["regions"]["shape"]) == ("int8", [run_channels(run)])
    scale = next(item for item in record.objects if item.key.startswith("features_scale/"))
    assert found.products["features"]["beside"]["features_scale"]["digest"] == scale.digest
    assert found.session["command"] == "extract"
    assert found.session["session"] == record.details["session"]
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (found.dataset, found.probed, found.not_known) == ({}, (), ())
    text = "\n".join(found.lines())
    for value in (found.image["sha256"], record.attempt, item.digest, "tiny_models:conv", str(file)):
        assert value in text
    os.utime(file, ns=(1, 1))
    assert "another size or time" in api.trace(tmp_path / "run", "#6").image["file_now"]
    file.unlink()
    assert "not there" in api.trace(tmp_path / "run", "img_006.png").image["file_now"]


@pytest.mark.slow
def test_a_healed_row_was_made_by_the_later_attempt(extract: Call, photos: Path, tmp_path: Path) -> None:
    kept = (photos / "img_005.png").read_bytes()
    (photos / "img_005.png").write_bytes(b"no image")
    run = extract("run", max_failures="100%")
    found = api.trace(tmp_path / "run", "img_005.png")
    assert found.state["status"] == "unreadable"
    assert found.state["reason"]
    (photos / "img_005.png").write_bytes(kept)
    driver.resume(run.folder, "unreadable", Changes(accept_changed=True, trust=True))
    healed, other = (api.trace(tmp_path / "run", f"img_{at:03d}.png") for at in (5, 6))
    assert healed.state["status"] == "ok"
    assert healed.image["sha256"] == hashlib.sha256(kept).hexdigest()
    assert (healed.session["command"], other.session["command"]) == ("resume", "extract")
    assert healed.commit["record"].endswith("s0000001.r1.json")
    assert healed.commit["attempts"] == other.commit["attempts"] == [other.commit["attempt"], healed.commit["attempt"]]


@pytest.mark.slow
def test_what_no_record_says_is_named(extract: Call, tmp_path: Path) -> None:
    run = extract("run")
    shutil.rmtree(tmp_path / "run" / "provenance" / "runs")
    found = api.trace(tmp_path / "run", "#0")
    session = found.session["session"]
    assert found.not_known == (
        f"the session {session}: its record is missing, damaged or a placeholder",
        "versions and machine: the record of the environment is missing or damaged",
    )
    (tmp_path / "run" / "_txn" / "commits" / "s0000002.json").unlink()
    (tmp_path / "run" / "features.zarr" / "status" / "c.2").unlink()
    pending = api.trace(run.place, "#9")
    assert (pending.state["status"], pending.state["reason"]) == ("not_written", "not attempted")
    assert pending.not_known == ("who encoded it and how: its shard is not committed",)
    assert pending.products["features"]["object"] is None


@pytest.mark.slow
def test_rows_of_a_dataset_and_of_earlier_runs(grown: Path, photos: Path, tmp_path: Path) -> None:
    found = api.trace(grown, "renamed.png")
    assert (found.dataset["version"], found.dataset["part"], found.image["path"]) == (
        3,
        "p000001",
        str(photos / "img_010.png"),
    )
    assert (found.image["image_id"], found.image["renamed_to"]) == ("renamed.png", str(photos / "renamed.png"))
    assert found.image["file_now"] == "of the same size and time"
    assert api.trace(grown, "img_003.png", 1).dataset["part"] == "p000001"
    assert api.trace(grown, "img_003.png").dataset["part"] == "p000002"
    assert api.trace(grown, "bad.png").state["status"] == "unreadable"
    with pytest.raises(errors.InputError, match=r"has no image 'img_010\.png'"):
        api.trace(grown, "img_010.png")
    with zipfile.ZipFile(EARLIER) as archive:
        archive.extractall(tmp_path / "earlier")
    for name in ("own-code", "cropped", "padded", "artifact", "model-file"):
        old = api.trace(tmp_path / "earlier" / name, "#1")
        assert (old.state["status"], old.commit["shard"]) == ("ok", 0)
        assert len(old.image["sha256"]) == 64


@pytest.mark.slow
def test_a_probe_set_names_the_row_of_its_source(extract: Call, labels: Path, tmp_path: Path) -> None:
    source = extract("run", "maps=none@float32")
    api.probe(tmp_path / "run", str(tmp_path / "probes"), points=str(labels), products=["p=spatial_point(cell)"])
    slots, row = api.trace(tmp_path / "probes", "img_005.png").probed
    assert slots["source"] == str(tmp_path / "run")
    assert (row["row_in_run"], row["shard"]) == (5, 1)
    record = source.folder.store.record(1)
    assert record is not None
    assert row["objects_read"][0]["attempt"] == record.attempt


@pytest.mark.slow
def test_on_s3_and_from_the_command_line_without_torch(
    extract: Call, s3: s3_server.Server, bucket: str, tmp_path: Path
) -> None:
    extract("run")
    objects, own = open_objects(bucket), open_objects(tmp_path / "run")
    for key, _ in own.walk(""):
        objects.write_new(key, own.read(key, most=None))
    here, there = (api.trace(place, "#4") for place in (tmp_path / "run", bucket))
    assert here.products == there.products
    code = (
        "import sys, runpy; from genenc_core.cli import app; sys.argv[0] = 'genenc'\n"
        "try: app.build_app()()\n"
        "except SystemExit as leaving: assert not leaving.code\n"
        "assert not [name for name in ('torch', 'prefect', 'xarray') if name in sys.modules]\n"
    )
    for arguments in (["trace", tmp_path / "run", "--image", "#4"], ["search", tmp_path / "run", "--row", "#4"]):
        command = [sys.executable, "-c", code, *map(str, arguments), "--json"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout)

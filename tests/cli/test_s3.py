"""The command line with a run folder on S3: the same answers and the same bytes as with a local one."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

import ceph
import s3_server
from genenc_core.store import run_store, store_keys
from genenc_core.store.backends.objects import open_objects

Call = Callable[..., Any]


@pytest.fixture
def run(s3: s3_server.Server) -> str:
    """A place for a run on S3."""
    return f"s3://{s3.bucket}/tests/{uuid.uuid4().hex[:12]}"


def group(root: str | Path) -> dict[str, bytes]:
    objects = open_objects(root)
    return {key: objects.read(f"{store_keys.GROUP}/{key}") for key, _ in objects.walk(store_keys.GROUP)}


@pytest.mark.slow
def test_a_run_on_s3_is_what_a_local_run_is(
    genenc: Call, photos: Path, tiny: list[str], tmp_path: Path, run: str
) -> None:
    points = tmp_path / "points.csv"
    points.write_text("image,point,x,y\nimg_000.png,nose,3,4\nimg_001.png,nose,5,6.5\nimg_001.png,tail,9,2\n")
    (photos / "img_003.png").write_bytes(b"no image")
    given = ["extract", photos, *tiny, "--points", points, "--maps", "--shard-rows", 4, "--batch-size", 4]
    local = tmp_path / "run"
    assert genenc(*given, "--out", local).code == 3
    said = genenc(*given, "--out", run)
    assert (said.code, said.err) == (3, "")
    assert f"features: {run}/features.zarr" in said.out
    assert group(run) == group(local)

    again = genenc(*given, "--out", run)
    assert "nothing to do" in again.out
    lines = [genenc("status", root).out.splitlines() for root in (run, local)]
    stored, expected = ([line for line in each if not line.startswith("limited by")] for each in lines)  # by time
    assert stored == [line.replace(str(local), run) for line in expected]
    assert genenc("resume", run).code == 3
    assert "2 shards checked: intact" in genenc("verify", run, "--content").out
    found = [json.loads(genenc("info", root, "--json").out) for root in (run, local)]
    assert found[0]["identity"] == found[1]["identity"]

    other = genenc("extract", photos, *tiny, "--out", run, "--fit", "pad")
    assert other.code == 2
    assert "holds another run, whose identity is fixed" in other.err
    assert group(run) == group(local)


@pytest.mark.slow
def test_damage_on_s3_is_named_and_made_again(genenc: Call, photos: Path, tiny: list[str], run: str) -> None:
    given = ["extract", photos, *tiny, "--out", run, "--shard-rows", 2, "--batch-size", 2]
    assert genenc(*given).code == 0
    whole, objects = group(run), open_objects(run)
    objects.remove(f"{store_keys.GROUP}/features/c.1.0")
    said = genenc("verify", run)
    assert said.code == 1
    assert "features/c.1.0" in said.out + said.err
    assert "1" in genenc("verify", run, "--repair").out
    assert genenc("status", run).out.startswith("4 of 6 images stored in 2 of 3 shards")
    assert genenc("resume", run).code == 0
    assert group(run) == whole
    first = f"provenance/runs/{min(objects.names('provenance/runs'))}"
    objects.remove(first)
    said = genenc("verify", run)
    assert (said.code, f"{first}: missing" in said.out) == (1, True)
    said = genenc("verify", run, "--repair")
    assert (said.code, f"lost and replaced by a placeholder: {first}" in said.out) == (0, True)
    assert "intact" in genenc("verify", run).out


@pytest.mark.slow
def test_zarr_opens_it_by_the_store(genenc: Call, photos: Path, tiny: list[str], run: str) -> None:
    genenc("extract", photos, *tiny, "--out", run)
    opened = zarr.open_group(run_store.RunStore.open(run).zarr_store(), mode="r")
    assert opened["status"][:].tolist() == [1] * 6
    text = open_objects(run).read("README.md").decode()
    assert "RunStore.open" in text
    assert "xarray.open_zarr" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "testsecret2"}, "AWS_SECRET_ACCESS_KEY is not the one of this AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "somebody"}, "does not know this AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL": "localhost"}, "AWS_ENDPOINT_URL is not an address"),
    ],
)
@pytest.mark.parametrize("command", ["extract", "status", "verify", "resume", "info"])
def test_what_cannot_be_reached_is_one_paragraph_without_secrets(
    genenc: Call,
    photos: Path,
    tiny: list[str],
    run: str,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    changes: dict[str, str],
    words: str,
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    arguments = ["extract", photos, *tiny, "--out", run] if command == "extract" else [command, run]
    said = genenc(*arguments)
    told = " ".join(said.err.split())
    assert said.code in (1, 2)
    assert words in told
    assert ceph.SECRET not in told
    assert len(told) < 700


@pytest.mark.parametrize("command", ["status", "verify", "resume", "info"])
def test_a_bucket_or_a_run_that_is_not_there_is_told(
    genenc: Call, s3: s3_server.Server, run: str, command: str
) -> None:
    assert "there is no such bucket" in " ".join(genenc(command, "s3://no-such-bucket-here/run").err.split())
    assert "is not a run folder" in " ".join(genenc(command, run).err.split())


def test_doctor_writes_to_the_place_and_leaves_nothing(genenc: Call, run: str) -> None:
    said = genenc("doctor", run)
    assert f"ok      place for runs: {run}, can be written" in said.out
    assert list(open_objects(run).walk("")) == []
    told = genenc("doctor", "s3://no-such-bucket-here/run")
    assert told.code == 1
    assert "there is no such bucket" in told.out

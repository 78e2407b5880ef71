"""The command `probe`: what it says, its exit codes, and what `status`, `verify` and `info` say of a probe set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import store_damage
from genenc_core.run.folder import RunFolder

Call = Callable[..., Any]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text("image,point,x,y\n" + "".join(f"img_{at:03d}.png,nose,{10 + at},{20 + at}\n" for at in range(5)))
    return path


@pytest.fixture
def source(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> Path:
    """A run of 6 images in 3 shards, of which one is unreadable, with maps."""
    (photos / "img_003.png").write_bytes(b"no image")
    more = ("--maps", "--fit", "pad", "--shard-rows", "2", "--max-failures", "1", "--plain")
    assert genenc("extract", photos, *tiny, "--out", tmp_path / "source", *more).code == 3
    return tmp_path / "source"


@pytest.mark.slow
def test_what_it_says(genenc: Call, source: Path, labels: Path, tmp_path: Path) -> None:
    place = tmp_path / "probes"
    said = genenc("probe", source, "--points", labels, "--out", place, "--plain")
    assert said.code == 3
    assert said.out.splitlines()[:2] == ["5 of 6 images stored in 3 of 3 shards", "1 unreadable (rows kept, NaN):"]
    assert "img_003.png" in said.out
    assert "--accept-changed" not in said.out
    assert "points: 4 ok, 1 image unreadable, 1 no such point" in said.out
    assert said.out.endswith(f"features: {place / 'features.zarr'}\n")
    again = genenc("probe", source, "--points", labels, "--out", place, "--plain", "--json")
    found = json.loads(again.out)
    assert (again.code, found["asked"], found["ok"], found["unreadable"]) == (3, 0, 5, 1)
    assert genenc("status", place).code == 3
    assert json.loads(genenc("status", place, "--json").out)["source"] == []
    assert f"probed         features of {source}, stored there as maps=none@float16" in genenc("info", place).out


@pytest.mark.slow
def test_verify_says_what_became_of_the_source(
    genenc: Call, source: Path, labels: Path, photos: Path, tmp_path: Path
) -> None:
    place = tmp_path / "probes"
    genenc("probe", source, "--points", labels, "--out", place, "--plain")
    assert genenc("verify", place).out == f"{place}: 3 shards checked: intact\n"
    (photos / "img_003.png").write_bytes((photos / "img_000.png").read_bytes())
    assert genenc("resume", source, "--shards", "unreadable", "--accept-changed", "--plain").code == 0
    said = genenc("verify", place, "--content")
    assert said.code == 0
    assert "source: 1 row healed there since: genenc resume" in said.out
    assert json.loads(genenc("verify", place, "--json").out)["source"][0].startswith("source: 1 row healed")
    assert genenc("resume", place, "--shards", "unreadable", "--plain").code == 0
    assert genenc("verify", place).out == f"{place}: 3 shards checked: intact\n"
    store_damage.flip(RunFolder(place).store, "probes/c.0.0.0", at=3)
    broken = genenc("verify", place)
    assert broken.code == 1
    assert "shard 0 rows 0-1 probes/c.0.0.0" in broken.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "error: --out is missing: give it on the command line or in a --config file"),
        (("--out", "made"), "error: nothing to probe: give --points FILE"),
        (("--out", "made", "--product", "x"), "is not of the form NAME=[SLOT:]MODULE"),
        (
            ("--out", "made", "--min-likelihood", "0.5", "--product", "a=gem"),
            "error: --min-likelihood 0.5 needs --points",
        ),
        (("--out", "made", "--dtype", "int4"), "is not one of 'float32', 'float16'"),
    ],
)
def test_wrong_use(
    genenc: Call, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = genenc("probe", source, *options, "--plain")
    assert said.code == 2
    assert message in said.err
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_options_in_a_file(genenc: Call, source: Path, labels: Path, tmp_path: Path) -> None:
    config = tmp_path / "probe.toml"
    config.write_text(
        'source = "source"\nout = "probes"\npoints = "labels.csv"\nproduct = ["soft=spatial_point(bilinear)"]\n'
    )
    assert genenc("probe", "--config", config, source, "--plain").code == 3
    assert RunFolder(tmp_path / "probes").store.plan.arrays[0].name == "soft"

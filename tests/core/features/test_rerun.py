"""A run made again from its record alone has the same bytes; what is not as recorded is refused by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genenc_core import api, errors
from genenc_core.features import rerun as rerunning
from genenc_core.run import driver
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from genenc_core.store.backends.objects import open_objects

Call = Callable[..., api.Run]
CODE = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.ReLU())
"""


def features(root: str | Path) -> dict[str, bytes]:
    """Return the bytes of `features.zarr`, by key."""
    objects = open_objects(str(root) if "://" in str(root) else Path(root))
    return {key: objects.read(f"features.zarr/{key}", most=None) for key, _ in objects.walk("features.zarr")}


@pytest.mark.slow
def test_the_same_bytes(
    extract: Call,
    photos: Path,
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Callable[[Path], Callable[[], None]],
) -> None:
    """From another working directory, without the labels' file, with an unreadable image and files of other times."""
    (photos / "img_004.png").write_bytes(b"no image")
    extract(
        "run",
        "features=global_avg_pool",
        "probes=spatial_point(cell)",
        "maps=none@float16",
        points=str(labels),
        max_failures="100%",
    )
    labels.unlink()
    for path in photos.iterdir():
        os.utime(path, ns=(1, 1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    check = unchanged(tmp_path / "run")
    done = api.rerun_from(tmp_path / "run", "again", trust=True)
    check()
    assert (done.identical, done.differing, done.environment) == (True, {}, ())
    again = tmp_path / "elsewhere" / "again"
    assert features(again) == features(tmp_path / "run")
    assert api.verify(again, content=True).ok
    assert api.compare(tmp_path / "run", again).identity == ()
    assert api.rerun_from(tmp_path / "run", again, trust=True).identical
    third = api.rerun_from(again, tmp_path / "third", trust=True)
    assert third.identical
    assert features(tmp_path / "third") == features(again)


@pytest.mark.slow
def test_each_shard_in_batches_of_the_size_that_it_was_encoded_in(extract: Call, tmp_path: Path) -> None:
    run = api.Run.create(
        str(tmp_path / "photos"),
        "tiny_models:conv",
        str(tmp_path / "run"),
        weights="random:0",
        image_size="32",
        shard_rows=4,
        device="cpu",
        trust=True,
    )
    for shard, size in ((0, 1), (1, 4), (2, 2)):
        driver.resume(run.folder, str(shard), Changes(batch_size=size, trust=True))
    assert api.rerun_from(tmp_path / "run", tmp_path / "again", trust=True).identical
    store = RunFolder(tmp_path / "again").store
    sizes = [record.details["batch_sizes"] for shard in range(3) if (record := store.record(shard))]
    assert sizes == [{"1": 4}, {"4": 1}, {"1": 1, "2": 1}]
    assert features(tmp_path / "again") == features(tmp_path / "run")


@pytest.mark.slow
def test_on_s3(extract: Call, bucket: str, tmp_path: Path) -> None:
    extract(f"{bucket}/run")
    assert api.rerun_from(f"{bucket}/run", f"{bucket}/again", trust=True).identical
    assert api.rerun_from(f"{bucket}/again", tmp_path / "local", trust=True).identical
    assert features(tmp_path / "local") == features(f"{bucket}/run")


@pytest.mark.slow
def test_other_images_are_refused_before_anything_is_written(extract: Call, photos: Path, tmp_path: Path) -> None:
    extract("run")
    kept = {name: (photos / name).read_bytes() for name in ("img_002.png", "img_005.png")}
    times = (photos / "img_002.png").stat()
    (photos / "img_002.png").write_bytes(kept["img_002.png"][:-1] + b"\1")
    os.utime(photos / "img_002.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    (photos / "img_005.png").unlink()
    with pytest.raises(errors.StoreError, match=r"2 images .*img_002\.png' has another sha.*img_005\.png' cannot"):
        api.rerun_from(tmp_path / "run", tmp_path / "again", trust=True)
    assert not (tmp_path / "again").exists()
    for name, data in kept.items():
        (photos / name).write_bytes(data)
    assert api.rerun_from(tmp_path / "run", tmp_path / "again", trust=True).identical


@pytest.mark.slow
def test_images_that_change_meanwhile_are_refused(
    extract: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract("run")
    compared = rerunning.refuse_other_images

    def then_changed(source: RunFolder) -> None:
        compared(source)
        shutil.copy(photos / "img_001.png", photos / "img_006.png")

    monkeypatch.setattr(rerunning, "refuse_other_images", then_changed)
    with pytest.raises(errors.StoreError, match=r"row 6 was read from another file .* Delete it, put the files back"):
        api.rerun_from(tmp_path / "run", tmp_path / "again", trust=True)


@pytest.mark.slow
def test_other_code_and_weights_are_refused(extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_encoder.py").write_text(CODE)
    extract("run", model="own_encoder:make", weights=None)
    record = tmp_path / "run" / "model_spec.json"
    (tmp_path / "own_encoder.py").write_text(CODE.replace("ReLU", "GELU"))
    api_clear()
    with pytest.raises(errors.GenencError, match="own_encoder"):
        api.rerun_from(tmp_path / "run", tmp_path / "again", trust=True)
    assert not (tmp_path / "again").exists()
    (tmp_path / "own_encoder.py").write_text(CODE)
    api_clear()
    assert api.rerun_from(tmp_path / "run", tmp_path / "again", trust=True).identical
    record.write_text(record.read_text().replace("own_encoder", "own_encoded"))
    with pytest.raises(errors.StoreError, match=r"model_spec\.json"):
        api.rerun_from(tmp_path / "run", tmp_path / "third", trust=True)


def api_clear() -> None:
    """Forget models and modules, as another process would."""
    import sys

    from genenc_core.run import model_cache

    model_cache.CACHE.clear()
    sys.modules.pop("own_encoder", None)


@pytest.mark.slow
def test_what_cannot_be_made_again_is_named(extract: Call, labels: Path, tmp_path: Path, grown: Path) -> None:
    extract("run", "maps=none@float32")
    api.probe(tmp_path / "run", str(tmp_path / "probes"), points=str(labels), products=["p=spatial_point(cell)"])
    extract("other", weights="random:1")
    planned = api.Run.create(str(tmp_path / "photos"), "tiny_models:conv", str(tmp_path / "planned"), trust=True)
    cases: list[tuple[Any, str, str]] = [
        (tmp_path / "probes", "new", "is a probe set"),
        (planned.place, "new", "is not complete"),
        (grown, "new", "is not a run folder"),
        (tmp_path / "run", "run", "is the run itself"),
        (tmp_path / "run", "other", "holds another run"),
        (tmp_path / "run", "run/inside", "is inside the run|is not empty"),
    ]
    for source, out, words in cases:
        with pytest.raises(errors.GenencError, match=words):
            api.rerun_from(source, tmp_path / out, trust=True)
    assert not (tmp_path / "new").exists()

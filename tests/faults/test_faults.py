"""Every kind of fault at every boundary of a run: what is said, what readers see, and what comes after."""

import dataclasses
import errno
import os
import shutil

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import faulty
import faulty_models
import scene
from faulty import Rule
from genenc_core.run.folder import RunFolder

MODEL = "faulty_models:told"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Faults of one command: its exit code, and words of what it says."""

    rules: tuple[Rule, ...]
    code: int
    words: tuple[str, ...] = ()


FULL, BROKEN, FILES = "No space left on device", "Input/output error", "Too many open files"
RESUME, CHOOSE = "then resume the run", "choose another --out"

CASES = {
    "creating: disk full": Case(
        rules=(Rule(call="os.fsync", nth=1, fault=faulty.fails(errno.ENOSPC)),), code=2, words=(FULL, CHOOSE)
    ),
    "creating: claim written, answer lost": Case(
        rules=(Rule(call="os.link", key="*store.json*", fault=faulty.fails_after(errno.EIO)),), code=2, words=(BROKEN,)
    ),
    "creating: read-only": Case(
        rules=(Rule(call="objects.replace", key="*README.md", fault=faulty.fails(errno.EROFS)),),
        code=1,
        words=("Read-only file system", "README.md"),
    ),
    "creating: group cannot be put in place": Case(
        rules=(Rule(call="os.rename", key="*features.zarr*", fault=faulty.fails(errno.EACCES)),),
        code=2,
        words=("Permission denied", CHOOSE),
    ),
    "staging: disk full": Case(
        rules=(Rule(call="objects.write_new", key="*staging*", fault=faulty.fails(errno.ENOSPC)),),
        code=1,
        words=("shard 00000", FULL, RESUME),
    ),
    "staging: half an object, then disk full": Case(
        rules=(Rule(call="files.write_new", key="*staging*", nth=2, fault=faulty.half_written(errno.ENOSPC)),),
        code=1,
        words=(FULL, RESUME),
    ),
    "staging: no more descriptors": Case(
        rules=(Rule(call="objects.write_new", key="*staging*", nth=1, fault=faulty.fails(errno.EMFILE)),),
        code=1,
        words=(FILES, RESUME),
    ),
    "staging: folder vanishes": Case(
        rules=(Rule(call="objects.write_new", key="*staging*", nth=1, fault=faulty.missing),), code=1, words=(RESUME,)
    ),
    "staging: metadata half read": Case(
        rules=(Rule(call="objects.read", key="*features/zarr.json", fault=faulty.half_read),),
        code=1,
        words=("changed since the run was created",),
    ),
    "commit: answer lost": Case(
        rules=(Rule(call="objects.create", key="*commits*", fault=faulty.fails_after(errno.EIO)),), code=0
    ),
    "commit: fails": Case(
        rules=(Rule(call="objects.create", key="*commits*", nth=1, fault=faulty.fails(errno.EIO)),),
        code=1,
        words=(BROKEN, RESUME),
    ),
    "commit: its own link looks like another's": Case(
        rules=(Rule(call="objects.create", key="*commits*", fault=faulty.fails_after(errno.EEXIST)),), code=0
    ),
    "promotion: one move fails, and the end of the command makes it good": Case(
        rules=(Rule(call="objects.move", nth=2, fault=faulty.fails(errno.EIO)),), code=0
    ),
    "promotion: moves fail": Case(
        rules=(Rule(call="objects.move", fault=faulty.fails(errno.EIO)),), code=1, words=(BROKEN, RESUME)
    ),
    "promotion: the status cannot be moved": Case(
        rules=(Rule(call="objects.move", key="*status/c.1", fault=faulty.fails(errno.EACCES)),),
        code=1,
        words=("Permission denied", RESUME),
    ),
    "promotion: moved, answer lost": Case(
        rules=(Rule(call="objects.move", nth=2, fault=faulty.fails_after(errno.EIO)),), code=0
    ),
    "promotion: staged objects are not seen": Case(
        rules=(Rule(call="objects.move", fault=faulty.missing),), code=1, words=("neither in place nor staged",)
    ),
    "promotion: folder cannot be made durable": Case(
        rules=(Rule(call="objects.sync", key="*features.zarr*", fault=faulty.fails(errno.EIO)),),
        code=1,
        words=(BROKEN,),
    ),
    "cleaning: nothing can be deleted": Case(
        rules=(Rule(call="objects.names", key="*staging*", fault=faulty.fails(errno.EIO)),), code=1, words=(BROKEN,)
    ),
    "everything slow": Case(rules=(Rule(call="objects.*", fault=faulty.slow(0.002)),), code=0),
    "session record: disk full": Case(
        rules=(Rule(call="objects.replace", key="*provenance/runs*", fault=faulty.fails(errno.ENOSPC)),),
        code=1,
        words=(FULL, "provenance/runs"),
    ),
    "record of a shard cannot be read": Case(
        rules=(Rule(call="objects.read", key="*commits*", nth=1, fault=faulty.fails(errno.ESTALE)),),
        code=1,
        words=("Stale file handle", "rerun the command"),
    ),
    "the records' folder cannot be listed": Case(
        rules=(Rule(call="objects.names", key="*commits*", nth=1, fault=faulty.fails(errno.EMFILE)),),
        code=1,
        words=(FILES, "rerun the command"),
    ),
    "image: too many open files": Case(
        rules=(Rule(call="image.read", key="*img_005.png", fault=faulty.fails(errno.EMFILE)),),
        code=1,
        words=("shard 00001", FILES),
    ),
    "image: stale handle": Case(
        rules=(Rule(call="image.read", key="*img_005.png", fault=faulty.fails(errno.ESTALE)),),
        code=1,
        words=("shard 00001", "Stale file handle"),
    ),
    "at random, again and again": Case(
        rules=(Rule(call="objects.[wcms]*", key="*_txn/[cs]*", chance=0.05, fault=faulty.fails(errno.EIO)),), code=1
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_fault_is_reported_and_rerun_completes(at: scene.Scene, case: str) -> None:
    expected = CASES[case]
    said = at.genenc(at.command(), *expected.rules, seed=1)
    assert said.injector.hits or case.startswith("image")  # those happen in the decode workers
    assert (said.code, [word for word in expected.words if word not in said.err]) == (expected.code, []), said.err
    assert scene.problems_of(said) == []
    assert at.wrong_rows() == []
    again = at.genenc(at.command())
    assert (again.code, again.err) == (0, "")
    assert at.not_whole() == []


def test_the_readers_check_sees_wrong_rows_and_the_end_check_other_bytes(at: scene.Scene) -> None:
    assert at.genenc(at.command()).code == 0
    group = zarr.open_group(at.root / "features.zarr", mode="r+")
    group["features"][5] = 7.0
    assert at.wrong_rows() == ["features[5]"]
    assert at.not_whole()
    (at.root / ".x.partial").write_text("")
    assert any("left behind" in what for what in at.not_whole())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faulty.fails(errno.EIO), "cannot be read: Input/output error"),
        (faulty.half_read, ""),
        (faulty.raises(MemoryError()), "not enough memory to decode this image"),
    ],
    ids=["EIO", "short read", "host memory"],
)
def test_a_fault_of_one_image_costs_its_row_and_no_other(at: scene.Scene, fault: faulty.Fault, reason: str) -> None:
    said = at.genenc(at.command(), Rule(call="image.read", key="*img_005.png", fault=fault))
    assert said.code == 3
    assert "row 5: img_005.png: " in said.out
    assert reason in said.out
    seen = zarr.open_group(at.root / "features.zarr", mode="r")["features"][:]
    others = [row for row in range(scene.IMAGES) if row != 5]  # in other batches now
    np.testing.assert_allclose(
        seen[others], at.final["features"][others], rtol=1e-5, atol=1e-6
    )  # batches are others now
    assert np.isnan(seen[5]).all()


ALL = torch.ones_like
OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (faulty_models.fits(0, OUT), "out of memory at batch size 1, the smallest that the model accepts"),
        (faulty_models.nan_for(lambda images: ALL(images[:, 0, 0, 0], dtype=torch.bool)), "NaN or infinite"),
        (faulty_models.raising(RuntimeError("device lost"), lambda images: ALL(images)), "device lost"),
        (lambda _, maps: maps[:, :3], "its spec declares float32"),
        (lambda _, maps: [maps, maps], ""),
    ],
    ids=["device memory", "NaN always", "raises always", "channels", "a list"],
)
def test_broken_encoder_fails_its_shards(at: scene.Scene, behaviour: faulty_models.Behaviour, words: str) -> None:
    expected = begun(at)
    with faulty_models.behaving(behaviour):
        said = at.genenc(["resume", str(at.root), "--plain"])
    assert said.code == 1, said
    assert words in said.err
    assert scene.problems_of(said) == []
    assert RunFolder(at.root).store.committed() == set()
    assert at.genenc(["resume", str(at.root), "--plain"]).code == 0
    assert (zarr.open_group(at.root / "features.zarr", mode="r")["features"][:] == expected).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "behaviour",
    [
        lambda _, maps: maps[:, :3],
        lambda _, maps: maps[:-1],
        lambda _, maps: maps.double(),
        lambda _, maps: [maps, maps],
        lambda _, maps: None,  # noqa: ARG005
        faulty_models.nan_for(lambda images: ALL(images[:, 0, 0, 0], dtype=torch.bool)),
        faulty_models.raising(TypeError("an int is no str"), lambda images: ALL(images)),
    ],
    ids=["channels", "rows", "float64", "a list", "nothing", "NaN", "TypeError"],
)
def test_encoder_that_turns_wrong_fails_its_shard(at: scene.Scene, behaviour: faulty_models.Behaviour) -> None:
    expected = begun(at)
    with faulty_models.behaving(faulty_models.later(behaviour, images=5)):
        said = at.genenc(["resume", str(at.root), "--plain", "--max-failures", "100%", "--batch-size", "1"])
    assert said.code == 1, said
    assert scene.problems_of(said) == []
    stored = RunFolder(at.root).store
    assert all(stored.record(shard).status_counts["unreadable"] == 0 for shard in stored.committed())  # type: ignore[union-attr]
    assert at.genenc(["resume", str(at.root), "--plain"]).code == 0
    np.testing.assert_allclose(features(at), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error", [OUT, MemoryError("no host memory"), RuntimeError("can't allocate memory: 12 bytes")])
def test_out_of_memory_halves_the_batch_remembers_it_and_goes_on(at: scene.Scene, error: Exception) -> None:
    expected = begun(at)
    tried: list[int] = []

    def behave(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        tried.append(len(images))
        return faulty_models.fits(1, error)(images, maps)

    with faulty_models.behaving(behave):
        assert at.genenc(["resume", str(at.root), "--plain"]).code == 0
    assert max(tried) == 3
    assert 0 < sum(size > 1 for size in tried) <= 2  # two lanes may have one batch each on the way
    folder = RunFolder(at.root)
    sizes = [set(folder.store.record(shard).details["batch_sizes"]) for shard in range(3)]  # type: ignore[union-attr]
    assert sizes == [{"1"}] * 3
    np.testing.assert_allclose(features(at), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "behaviour",
    [
        faulty_models.nan_for(faulty_models.is_dark),
        faulty_models.raising(ValueError("too dark"), faulty_models.is_dark),
    ],
    ids=["NaN", "raises"],
)
def test_encoder_failing_for_one_image_costs_its_row(at: scene.Scene, behaviour: faulty_models.Behaviour) -> None:
    light, planned = (at.photos / "img_006.png").read_bytes(), (at.photos / "img_006.png").stat()
    Image.new("RGB", (40, 40)).save(at.photos / "img_006.png")
    try:
        expected = begin(at)
        with faulty_models.behaving(behaviour):
            said = at.genenc(["resume", str(at.root), "--plain"])
    finally:
        (at.photos / "img_006.png").write_bytes(light)
        os.utime(at.photos / "img_006.png", ns=(planned.st_atime_ns, planned.st_mtime_ns))  # the manifest holds it
    assert said.code == 3
    assert "row 6: img_006.png" in said.out
    others = [row for row in range(scene.IMAGES) if row != 6]
    np.testing.assert_allclose(features(at)[others], expected[others], rtol=1e-5, atol=1e-6)
    assert np.isnan(features(at)[6]).all()
    assert at.genenc(["verify", str(at.root), "--content"]).code == 0


def features(at: scene.Scene) -> np.ndarray:
    """Return what readers see."""
    return np.asarray(zarr.open_group(at.root / "features.zarr", mode="r")["features"][:])


def begun(at: scene.Scene) -> np.ndarray:
    """Put a run there whose encoder is well and of which nothing is stored; return what its features should be."""
    kept, expected = at.folder / "begun", at.folder / "expected.npy"
    if kept.exists():
        shutil.copytree(kept, at.root)
    else:
        np.save(expected, begin(at))
        shutil.copytree(at.root, kept)
    return np.asarray(np.load(expected))


def begin(at: scene.Scene) -> np.ndarray:
    """As `begun`, of the images as they are now."""
    command = at.command(model=MODEL)
    assert at.genenc(command).code in (0, 3)
    expected = features(at)
    at.clear()
    full = Rule(call="objects.write_new", key="*staging*", fault=faulty.fails(errno.ENOSPC))
    assert at.genenc(command, full).code == 1
    assert RunFolder(at.root).store.committed() == set()
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("method", ["digest", "read"])
def test_repair_does_not_take_a_passing_fault_for_damage(at: scene.Scene, method: str) -> None:
    assert at.genenc(at.command()).code == 0
    key = "*features/c.1*" if method == "digest" else "*commits/s0000001.json"
    rule = Rule(call=f"objects.{method}", key=key, fault=faulty.fails(errno.EMFILE))
    said = at.genenc(["verify", str(at.root), "--repair"], rule)
    assert said.injector.hits
    assert said.code == 1
    assert FILES in said.err
    assert at.not_whole() == []

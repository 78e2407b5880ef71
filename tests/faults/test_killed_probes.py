"""`genenc probe` ended by SIGKILL or Ctrl-C at any step leaves nothing wrong; again, it ends with the same bytes."""

import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import pictures
from genenc_core import api
from genenc_core.run import status
from genenc_core.run.folder import RunFolder
from genenc_core.store import store_keys
from genenc_core.store.backends.objects import Objects, Root, open_objects, to_root
from stopped_commands import Ended, Run, Step, run

__all__ = ["run"]

STEPS = {
    "matching": Step("genenc_core.probing.planning", "_listed"),
    "planning": Step("genenc_core.run.planning", "create_store"),
    "reading": Step("genenc_core.run.probe_source", "Source.read", after=1),
    "staged": Step("genenc_core.store.transaction", "Attempt.commit", after=1),
    "committed": Step("genenc_core.store.run_store", "RunStore._finish", after=1),
    "promoted": Step("genenc_core.store.transaction", "clean", after=1),
}
PRODUCTS = ("probes=spatial_point(cell)", "pool=global_avg_pool")
Probe = Callable[..., Ended]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run with maps, and labels of its images."""
    photos = pictures.write_folder(tmp_path / "photos", 20)
    (tmp_path / "labels.csv").write_text(
        "image,point,x,y\n" + "".join(f"img_{at:03d}.png,nose,{5 + 3 * at},20\n" for at in range(20))
    )
    small = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "device": "cpu", "shard_rows": 2}
    api.extract(
        str(photos), out=str(tmp_path / "source"), products=["maps=none@float32"], trust=True, decode_workers=1, **small
    )
    return tmp_path / "source"


@pytest.fixture
def probe(run: Run, tmp_path: Path, source: Path) -> Probe:
    products = [word for product in PRODUCTS for word in ("--product", product)]
    words = ["probe", str(source), "--points", str(tmp_path / "labels.csv"), "--plain", *products]
    return lambda place, **stop: run([*words, "--out", str(place)], **stop)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """Where the probe set is made."""
    if request.param == "local":
        return tmp_path / "probes"
    return to_root(f"s3://{request.getfixturevalue('s3').bucket}/tests/{uuid.uuid4().hex[:12]}/probes")


def stored(root: Root) -> dict[str, bytes]:
    """Return the objects of a probe set's group."""
    objects: Objects = open_objects(root)
    return {name: objects.read(f"{store_keys.GROUP}/{name}") for name, _ in sorted(objects.walk(store_keys.GROUP))}


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assert_whole(probe: Probe, place: Root, tmp_path: Path) -> None:
    assert probe(place).code == 0
    assert probe(tmp_path / "uninterrupted").code == 0
    assert stored(place) == stored(tmp_path / "uninterrupted")
    report = status.verify_run(RunFolder(place), content=True)
    assert (report.problems, report.pending, report.unpromoted) == ((), (), ())
    if isinstance(place, Path):
        assert open_objects(place).names(store_keys.STAGING) == []
        assert [str(path) for path in place.rglob(".*")] == []


@pytest.mark.slow
def test_killed_at_every_step(probe: Probe, place: Root, source: Path, tmp_path: Path) -> None:
    before = files(source)
    for name, step in STEPS.items():
        assert probe(place, at=step, by=signal.SIGKILL).code == -signal.SIGKILL, name
        if name not in ("matching", "planning"):
            assert status.verify_run(RunFolder(place)).problems == (), name
    assert_whole(probe, place, tmp_path)
    assert files(source) == before


@pytest.mark.slow
def test_interrupted_at_every_step(probe: Probe, tmp_path: Path) -> None:
    place = tmp_path / "probes"
    for name in ("matching", "planning", "reading", "staged"):
        ended = probe(place, at=STEPS[name], by=signal.SIGINT)
        assert ended.code == 130, ended.told
        assert ended.told.startswith("stopped: ") or "\nstopped: " in ended.told
    assert_whole(probe, place, tmp_path)

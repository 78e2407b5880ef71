"""An image that hangs or kills its decoder costs its own row, never the run, and the process can always end."""

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forked
import hostile_images
from genenc_core import spec
from genenc_core.images import decode, geometry, inflight, isolated, limits, loader, manifest, pool, reading, sources

SQUARE = spec.Preprocessing(height=24, width=32, fit="crop")
SUPPORT = str(Path(hostile_images.__file__).parent)
SERVE = "import hostile_images; hostile_images.serve()"


@pytest.fixture
def listed(folder: Path, tmp_path: Path) -> manifest.Manifest:
    """Twelve readable images."""
    return manifest.write_manifest(tmp_path / "m.parquet", sources.open_source(str(folder)))


@pytest.fixture(autouse=True)
def _children_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the import of torch; the sessions below start children of their own as the product does."""
    forking = types.SimpleNamespace(**{**vars(subprocess), "Popen": forked.Popen})
    monkeypatch.setattr(isolated, "subprocess", forking)


def poison(listed: manifest.Manifest, word: bytes, *rows: int) -> None:
    for row in rows:
        with Path(listed.read(row, row + 1).paths[0]).open("ab") as file:
            file.write(word)


@pytest.fixture(scope="module")
def alone() -> Iterator[isolated.IsolatedLoader]:
    """One child with the hostile decoder for all tests; its start is most of its cost."""
    patch = pytest.MonkeyPatch()
    patch.setattr(isolated, "_SERVE", SERVE)
    shared = isolated.IsolatedLoader(SQUARE, limits.Limits(accept_changed=True))
    patch.undo()
    yield shared
    shared.close()


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, alone: isolated.IsolatedLoader) -> None:
    """Make the hostile decoder the product's, in this process and in its children."""
    hostile_images.install(monkeypatch.setattr)

    def shared(_preprocessing: spec.Preprocessing, chosen: limits.Limits) -> isolated.IsolatedLoader:
        alone._limits = chosen
        return alone

    monkeypatch.setattr(alone, "close", lambda: None)
    monkeypatch.setattr(isolated, "IsolatedLoader", shared)


@pytest.mark.usefixtures("hostile")
def test_a_hung_image_is_a_row_and_its_thread_is_replaced(listed: manifest.Manifest) -> None:
    """With one thread everything behind it would wait for ever; the reason says the limit and the remedy."""
    poison(listed, hostile_images.HANGS, 4)
    images = loader.ImageLoader(listed, SQUARE, threads=1, limits=limits.Limits(accept_changed=True, seconds=0.5))
    got = list(images.iter_rows(0, 12))
    began = time.monotonic()
    images.close()
    assert time.monotonic() - began < 3, "a thread that hangs is not waited for"
    assert [image.row for image in got] == list(range(12))
    assert [image.row for image in got if image.failure] == [4]
    assert "no result within 0.5 s" in str(got[4].failure)
    assert "--image-timeout" in str(got[4].failure)


@pytest.mark.usefixtures("hostile")
def test_an_image_that_was_only_slow_gets_its_second_chance(
    listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine must not mark an image for ever: alone in its own process it has the limit to itself."""
    slow, real = threading.Event(), decode.decode_image
    with monkeypatch.context() as busy:
        busy.setattr(decode, "decode_image", lambda data, **options: (slow.wait(), real(data, **options))[1])
        with loader.ImageLoader(
            listed, SQUARE, threads=2, limits=limits.Limits(accept_changed=True, seconds=0.4)
        ) as images:
            images._alone._limits = limits.Limits(accept_changed=True, seconds=30)
            got = next(images.iter_rows(2, 3))
            slow.set()
    with loader.ImageLoader(listed, SQUARE, limits=limits.Limits(accept_changed=True)) as images:
        (expected,) = images.iter_rows(2, 3)
    assert got.failure is None
    assert got.pixels is not None
    assert expected.pixels is not None
    assert got.pixels.equal(expected.pixels)
    assert (got.affine, got.sha256, got.height) == (expected.affine, expected.sha256, expected.height)


def test_time_in_which_nobody_waits_does_not_count(listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that computes for a minute between two batches, or a suspended process, ages no image."""
    real = decode.decode_image
    monkeypatch.setattr(decode, "decode_image", lambda data, **options: (time.sleep(0.3), real(data, **options))[1])
    with loader.ImageLoader(
        listed, SQUARE, threads=1, limits=limits.Limits(accept_changed=True, seconds=1.5)
    ) as images:
        for image in images.iter_rows(0, 12):
            assert image.failure is None
            if image.row == 0:
                time.sleep(2)


@pytest.mark.usefixtures("hostile")
def test_when_more_images_hang_than_threads_it_is_no_images_fault(listed: manifest.Manifest) -> None:
    """A volume that stopped answering must not make every row unreadable."""
    poison(listed, hostile_images.HANGS, *range(12))
    images = loader.ImageLoader(listed, SQUARE, threads=6, limits=limits.Limits(accept_changed=True, seconds=0.3))
    with pytest.raises(pool.TooManyHung, match=r"more than the 6 decoding threads.*--image-timeout"):
        list(images.iter_rows(0, 12))
    images.close()


@pytest.mark.usefixtures("hostile")
def test_suspects_are_loaded_alone(listed: manifest.Manifest, tmp_path: Path) -> None:
    """Rows in the notes of a dead process: the good ones as ever, the bad ones with the signal that they cause."""
    with loader.ImageLoader(listed, SQUARE, limits=limits.Limits(accept_changed=True)) as images:
        (expected,) = images.iter_rows(6, 7)
    poison(listed, hostile_images.ABORTS, 3)
    poison(listed, hostile_images.SEGFAULTS, 4)
    poison(listed, hostile_images.HANGS, 5)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "1-dead.rows").write_bytes(b"".join(row.to_bytes(8, "little") for row in (3, 4, 5, 6)))
    with loader.ImageLoader(
        listed, SQUARE, journal=notes, limits=limits.Limits(accept_changed=True, seconds=0.5)
    ) as images:
        got = list(images.iter_rows(0, 12))
        assert [image.row for image in got] == list(range(12))
        assert [image.row for image in got if image.failure] == [3, 4, 5]
        assert "SIGABRT" in str(got[3].failure)
        assert "SIGSEGV" in str(got[4].failure)
        assert "no result within 0.5 s" in str(got[5].failure)
        assert got[6].pixels is not None
        assert expected.pixels is not None
        assert got[6].pixels.equal(expected.pixels)
        assert (got[6].affine, got[6].sha256) == (expected.affine, expected.sha256)
        images.settle(0, 12)
    assert not notes.exists()


DYING = f"""
import sys
sys.path.insert(0, {SUPPORT!r})
import hostile_images
from genenc_core.images import isolated
hostile_images.install()
isolated._SERVE = {SERVE!r}
from pathlib import Path
from genenc_core import spec
from genenc_core.images import limits, loader, manifest
listed = manifest.Manifest.open(Path(sys.argv[1]))
images = loader.ImageLoader(
    listed, spec.Preprocessing(height=24, width=32), threads=2, journal=Path(sys.argv[2]),
    limits=limits.Limits(accept_changed=True, seconds=float(sys.argv[3])),
)
for image in images.iter_rows(0, 12):
    sys.stdout.write(f"{{image.row}} {{image.failure}}\\n")
images.close()
sys.stdout.write("end")
"""


def session(listed: manifest.Manifest, notes: Path, *, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return forked.run(
        [sys.executable, "-c", DYING, str(listed.path), str(notes), str(seconds)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_no_run_dies_for_ever_of_one_image_and_every_process_ends(listed: manifest.Manifest, tmp_path: Path) -> None:
    """The first session dies; the second knows of what, delivers all rows, and does not wait for a thread that hangs.

    What hung in it is in its notes: a third would not lose a thread on it.
    """
    poison(listed, hostile_images.ABORTS, 5)
    first = session(listed, tmp_path / "notes")
    assert first.returncode == -6
    assert 5 in inflight.Journal(tmp_path / "notes", 1).suspects()
    poison(listed, hostile_images.HANGS, 9)
    second = session(listed, tmp_path / "notes", seconds=1.5)
    assert (second.returncode, second.stdout[-3:]) == (0, "end"), second.stderr
    told = {line.partition(" ")[0]: line for line in second.stdout.splitlines() if not line.endswith(" None")}
    assert set(told) == {"5", "9", "end"}
    assert "its decoder ends the process (SIGABRT" in told["5"]
    assert "gave no result within 1.5 s" in told["9"]
    assert 9 in inflight.Journal(tmp_path / "notes", 1).suspects()


def test_a_fault_of_the_volume_stays_one_in_a_process_of_its_own(
    listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reading.Reader(geometry.Fitter(SQUARE), limits.Limits())
    monkeypatch.setattr(reader, "begin", lambda _: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    answer = isolated._packed(reading.Request(0, "x", 1), reader)
    with pytest.raises(OSError, match="Stale file handle") as caught:
        isolated._unpacked(0, answer, limits.Limits())
    assert caught.value.errno == 116


class _Killed(isolated.IsolatedLoader):
    """A loader whose images are killed so many times."""

    def __init__(self, times: int, number: int, *, whole: bool) -> None:
        super().__init__(SQUARE, limits.Limits())
        self.left = times
        victim = "os.getppid()" if whole else "os.getpid()"
        self.normal = self._program
        self.killing = self._program.replace(
            "isolated.serve()",
            "import os; from genenc_core.images import reading; "
            f"reading.Reader.load = lambda *_: os.kill({victim}, {number}) or __import__('time').sleep(1); "
            "isolated.serve()",
        )

    def _started(self) -> Any:
        self._program = self.killing if self.left > 0 else self.normal
        self.left -= 1
        if self._process is not None:
            self._end(self._process, kill=True)
        return super()._started()


@pytest.mark.parametrize("whole", [False, True], ids=["its process", "the server"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_decoder_killed_from_outside_is_tried_again_and_is_then_no_fault_of_the_image(
    listed: manifest.Manifest, number: int, whole: bool
) -> None:
    path = listed.read(0, 1).paths[0]
    for times in (1, 2):
        alone = _Killed(times, number, whole=whole)
        try:
            if times == 1:
                assert alone.load(reading.Request(0, path, -1)).failure is None
            else:
                with pytest.raises(ChildProcessError, match="killed from outside"):
                    alone.load(reading.Request(0, path, -1))
        finally:
            alone.close()


def test_a_full_temporary_folder_is_no_fault_of_an_image(
    listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/1/nowhere")
    alone = isolated.IsolatedLoader(SQUARE, limits.Limits())
    try:
        assert alone.load(reading.Request(0, listed.read(0, 1).paths[0], -1)).failure is None
    finally:
        alone.close()

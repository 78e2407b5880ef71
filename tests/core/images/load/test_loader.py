"""The loader yields every row once, in order, within its window; a broken image is one row with a reason."""

import contextlib
import errno
import hashlib
import io
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import forked
from genenc_core import errors, spec
from genenc_core.images.decode import decode, decoded, geometry, load_image
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load import decode_pool, decode_worker, loader
from genenc_core.images.load.decode_worker import Seconds
from genenc_core.images.sources import image_source, manifest
from loading import fork_workers, iter_rows
from simulated_device import Latencies, SimulatedDevice

__all__ = ["fork_workers"]
SQUARE = spec.Preprocessing(height=24, width=32, fit="crop")


def manifest_of(images: Path, tmp_path: Path) -> manifest.Manifest:
    return manifest.write_manifest(tmp_path / "m.parquet", image_source.open_source(str(images)))


def test_rows_come_in_order_and_equal_a_plain_loop(tmp_path: Path, folder: Path) -> None:
    """Whatever the number of workers and the batch, each row equals decode + plan + fit of its file."""
    listed = manifest_of(folder, tmp_path)
    entries = listed.read(0, listed.rows)
    for workers, batch in ((1, 1), (2, 3), (3, 64)):
        with loader.ImageLoader(listed, SQUARE, workers=workers, batch=batch) as images:
            got = list(iter_rows(images, 2, 11))
        assert [image.row for image in got] == list(range(2, 11))
        for image in got:
            data = Path(entries.paths[image.row]).read_bytes()
            decoded = decode.decode_image(data)
            height, width = decoded.pixels.shape[1:]
            plan = geometry.plan_fit(height, width, SQUARE)
            assert image.pixels is not None
            assert torch.equal(image.pixels, geometry.apply_fit(decoded.pixels, plan, SQUARE))
            assert (image.height, image.width, image.orientation) == (height, width, 1)
            assert image.affine == plan.affine
            assert image.sha256 == hashlib.sha256(data).hexdigest()
            assert image.failure is None


def test_block_boundaries(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the manifest in blocks does not show."""
    monkeypatch.setattr(loader, "_ROWS_READ", 5)
    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE) as images:
        assert [image.row for image in iter_rows(images, 0, 12)] == list(range(12))
        assert [image.row for image in iter_rows(images, 3, 10)] == list(range(3, 10))
        assert list(iter_rows(images, 4, 4)) == []


def test_a_folder_of_every_kind(
    tmp_path: Path, photo: np.ndarray, encode: Callable[..., bytes], png16: Callable[..., bytes]
) -> None:
    """N rows for N files, whatever is among them; the bad ones have reasons, the others their own pixels."""
    root = tmp_path / "mixed"
    root.mkdir()
    image = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encode(image, "JPEG")
    files = {
        "good.jpg": jpeg,
        "grey.jpg": encode(image.convert("L"), "JPEG"),
        "palette.gif": encode(image.quantize(16), "GIF"),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "deep.png": png16(photo.astype(np.uint16) * 257),
        "rotated.jpg": encode(image, "JPEG", exif=exif),
        "small.png": encode(image.crop((0, 0, 1, 1)), "PNG"),
        "x_truncated.jpg": jpeg[: len(jpeg) // 2],
        "x_empty.png": b"",
        "x_page.jpg": b"<!DOCTYPE html><html>404</html>",
        "x_text.png": b"hello",
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    (root / "x_dangling.png").symlink_to(root / "gone.png")
    os.mkfifo(root / "x_fifo.png")
    (root / "x_zero.png").symlink_to("/dev/zero")
    listed = manifest_of(root, tmp_path)
    with loader.ImageLoader(listed, spec.Preprocessing(height=45, width=60), workers=2) as images:
        got = dict(zip(listed.read(0, listed.rows).image_ids, iter_rows(images, 0, listed.rows), strict=True))
    assert len(got) == len(files) + 3
    bad = {name: row for name, row in got.items() if row.failure is not None}
    assert set(bad) == {name for name in got if name.startswith("x_")}
    words = {
        "x_truncated.jpg": "runcated",
        "x_empty.png": "empty",
        "x_page.jpg": "HTML",
        "x_text.png": "not a known image",
        "x_dangling.png": "No such file",
        "x_fifo.png": "not a regular file",
        "x_zero.png": "not a regular file",
    }
    for name, row in bad.items():
        assert words[name] in str(row.failure)
        assert (row.pixels, row.affine, row.height, row.width, row.orientation) == (None, None, -1, -1, 0)
        assert bool(row.sha256) == (name in files)
    assert (got["rotated.jpg"].height, got["rotated.jpg"].width, got["rotated.jpg"].orientation) == (60, 45, 6)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert got["good.jpg"].pixels is not None
    np.testing.assert_array_equal(got["good.jpg"].pixels.permute(1, 2, 0).numpy(), expected)
    assert got["deep.png"].pixels is not None
    np.testing.assert_array_equal(got["deep.png"].pixels.permute(1, 2, 0).numpy(), photo)


def test_changed_files_are_read_and_the_change_told(tmp_path: Path, folder: Path) -> None:
    """Another size than planned, a file that vanished, one that appeared, one that became a folder."""
    (folder / "a09.png").symlink_to(folder / "later.png")
    listed = manifest_of(folder, tmp_path)
    size = (folder / "a00.png").stat().st_size
    with (folder / "a00.png").open("ab") as file:
        file.write(b"more")
    (folder / "a01.png").unlink()
    (folder / "a02.png").unlink()
    (folder / "a02.png").mkdir()
    (folder / "later.png").write_bytes(b"12345")
    with loader.ImageLoader(listed, SQUARE) as images:
        (refused, _) = iter_rows(images, 0, 2)
        assert str(refused.failure).startswith(f"changed since planned: was {size} bytes, is {size + 4} bytes")
        assert (refused.cause, refused.pixels) == ("changed", None)
    with loader.ImageLoader(listed, SQUARE, limits=Limits(accept_changed=True)) as images:
        loaded = list(iter_rows(images, 0, 7))
    failures, changes = [image.failure for image in loaded], [image.changed for image in loaded]
    assert failures[0] is None
    assert changes[0] == f"changed since planned: was {size} bytes, is {size + 4} bytes"
    assert loaded[0].sha256 == hashlib.sha256((folder / "a00.png").read_bytes()).hexdigest()
    assert failures[1] == "cannot be read: No such file or directory"
    assert failures[2] == "not a regular file"
    assert failures[3:6] == [None] * 3
    assert changes[1:7] == [None] * 6
    assert str(failures[6]).startswith("not a known image")


@pytest.mark.parametrize(
    ("error", "words"), [(MemoryError(), "memory"), (RuntimeError("torch\nsays no"), "torch says no")]
)
def test_any_error_is_one_row(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    fork_workers: Callable[[], None],
    error: Exception,
    words: str,
) -> None:
    listed = manifest_of(folder, tmp_path)
    poison = (folder / "a03.png").read_bytes()
    real = decode.decode_image

    def failing(data: bytearray, **options: int) -> decoded.Decoded:
        if data == poison:
            raise error
        return real(data, **options)

    monkeypatch.setattr(decode, "decode_image", failing)
    fork_workers()
    with loader.ImageLoader(listed, SQUARE) as images:
        got = list(iter_rows(images, 0, listed.rows))
    assert [image.row for image in got if image.failure] == [3]
    assert words in str(got[3].failure)


def test_a_fault_of_the_process_is_no_images_while_it_is_decoded_either(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]
) -> None:
    def failing(_data: bytearray, **_options: int) -> decoded.Decoded:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(decode, "decode_image", failing)
    fork_workers()
    with (
        loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE) as images,
        pytest.raises(OSError, match="Too many open files"),
    ):
        list(iter_rows(images, 0, 1))


def test_thread_that_cannot_start_is_told(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "genenc-images":
            raise RuntimeError("can't start new thread")
        real(thread)

    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, workers=2) as images:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    list(iter_rows(images, 0, 12))
        assert [row.row for row in iter_rows(images, 0, 12)] == list(range(12))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (decode_pool.Answer, "of"),
        (decode_pool.Piece, "packed"),
        (decode_pool.DecodePool, "_note"),
        (decode_pool.DecodePool, "_assign"),
        (decode_pool.DecodePool, "_handle_exit"),
        (decode_pool.DecodePool, "_check_hung"),
    ],
)
def test_a_want_of_memory_ends_the_wait_and_mixes_up_no_rows(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Wherever the pool's thread lacks it, with workers that have more rows in work and one that was killed."""
    lacking = threading.Event()
    real = getattr(owner, name)

    def once(*arguments: Any, **options: Any) -> Any:
        if lacking.is_set():
            lacking.clear()
            raise MemoryError
        return real(*arguments, **options)

    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, workers=2, batch=4) as images:
        expected = [(row.row, row.sha256) for row in iter_rows(images, 0, 12)]
        monkeypatch.setattr(owner, name, once)
        monkeypatch.setattr(decode_pool, "_TICK", 0.001)  # it looks for workers that hang as often
        lacking.set()
        if name == "_handle_exit":
            (worker, *_) = images._pool._workers.values()
            os.kill(worker.process, signal.SIGKILL)
        with contextlib.suppress(MemoryError):
            while lacking.is_set():
                list(iter_rows(images, 0, 12))
        assert not lacking.is_set()
        for _ in range(3):
            assert [(row.row, row.sha256) for row in iter_rows(images, 0, 12)] == expected


def test_memory_bounds_the_images_ahead(tmp_path: Path, folder: Path) -> None:
    """While batches are not released, no more than the room for those in flight and ahead is filled."""
    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, workers=1, batch=1, in_flight=2) as images:
        free = len(images._free)
        batches = images.iter_batches(0, 12)
        held = [next(batches) for _ in range(2)]
        assert free - len(images._free) <= 2 + images._ahead
        for batch in held:
            batch.release()
            batch.release()
        batches.close()
        assert len(list(iter_rows(images, 0, 12))) == 12
        assert sorted(images._free) == list(range(free))


def test_broken_images_leave_full_batches(tmp_path: Path, folder: Path) -> None:
    """A batch is filled from what follows, so that the encoder computes as it would without the broken ones."""
    for name in ("a01.png", "a05.png", "a06.png"):
        (folder / name).write_bytes(b"broken")
    listed = manifest_of(folder, tmp_path)
    with loader.ImageLoader(listed, SQUARE, batch=4) as images:
        got = []
        for batch in images.iter_batches(0, 12):
            assert sum(len(part) for part in batch.parts) == len(batch)
            got.append((batch.rows.tolist(), [each.row for each in batch.unreadable]))
            batch.release()
    assert [rows for rows, _ in got] == [[0, 2, 3, 4], [7, 8, 9, 10], [11]]
    assert sorted(row for _, bad in got for row in bad) == [1, 5, 6]


@pytest.mark.slow
def test_closing_early_gives_everything_back(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]
) -> None:
    real = decode.decode_image
    monkeypatch.setattr(decode, "decode_image", lambda data, **options: (time.sleep(0.05), real(data, **options))[1])
    fork_workers()
    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, workers=2, batch=2) as images:
        free = len(images._free)
        iterator = images.iter_batches(0, 12)
        next(iterator).release()
        iterator.close()
        assert [row.row for row in iter_rows(images, 5, 8)] == [5, 6, 7]
        end = time.monotonic() + 300
        while len(images._free) < free and time.monotonic() < end:
            time.sleep(0.01)
        assert sorted(images._free) == list(range(free))


def test_two_callers_are_served_at_a_time(tmp_path: Path, folder: Path) -> None:
    """Each has its own rows, in order, whatever the other waits for."""
    listed = manifest_of(folder, tmp_path)
    with loader.ImageLoader(listed, SQUARE, workers=2, batch=2, in_flight=2) as images:
        expected = [row.sha256 for row in iter_rows(images, 0, 12)]
        found: list[list[str]] = [[], []]

        def caller(number: int) -> None:
            held: list[loader.LoadedBatch] = []
            for _ in range(10):
                got: list[str] = []
                for batch in images.iter_batches(0, 12):
                    got += batch.sha256.astype(str).tolist()
                    held.append(batch)
                    if len(held) == 2:
                        held.pop(0).release()
                found[number] = got
            for batch in held:
                batch.release()

        threads = [threading.Thread(target=caller, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
    assert found == [expected, expected]


@pytest.mark.slow
def test_workers_are_started_while_somebody_waits(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]
) -> None:
    """Few, where the encoder takes longer than the decoding; all, where it waits for images."""
    real = decode.decode_image
    monkeypatch.setattr(decode, "decode_image", lambda data, **options: (time.sleep(0.05), real(data, **options))[1])
    fork_workers()
    listed = manifest_of(folder, tmp_path)
    for encoder_waits, count in ((False, 4), (True, 6)):
        with loader.ImageLoader(listed, SQUARE, workers=6, batch=1) as images:
            pool = images._pool
            for _ in range(3):
                for batch in images.iter_batches(0, 12):
                    batch.release()
                    while not encoder_waits and (pool._queue or any(each.assigned for each in pool._workers.values())):
                        time.sleep(0.01)
                if not encoder_waits:
                    break
            assert len(pool._workers) == count


@pytest.mark.slow
def test_close_ends_the_workers_and_leaves_no_descriptor(tmp_path: Path, folder: Path) -> None:
    """In a process of its own: what earlier tests left behind may end while this one counts."""
    listed = manifest_of(folder, tmp_path)
    program = f"""
import gc, threading, time
from pathlib import Path
from genenc_core import spec
from genenc_core.images.load import decode_server, loader
from genenc_core.images.sources import manifest

def kept():
    gc.collect()
    return sorted(path.name for path in Path("/proc/self/fd").iterdir()), threading.active_count()

listed = manifest.Manifest.open(Path({str(listed.path)!r}))
decode_server.running()
before = kept()
images = loader.ImageLoader(listed, spec.Preprocessing(height=24, width=32, fit="crop"), workers=2)
for batch in images.iter_batches(0, 12):
    batch.release()
del batch
workers = [worker.process for worker in images._pool._workers.values()]
assert workers
images.close()
images.close()
del images
assert kept() == before, (kept(), before)
end = time.monotonic() + 300
while any(Path(f"/proc/{{process}}").exists() for process in workers) and time.monotonic() < end:
    time.sleep(0.01)
assert not any(Path(f"/proc/{{process}}").exists() for process in workers)
"""
    done = forked.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_workers_use_one_torch_thread(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]
) -> None:
    real = decode.decode_image

    def watching(data: bytearray, **options: int) -> decoded.Decoded:
        assert torch.get_num_threads() == 1
        return real(data, **options)

    monkeypatch.setattr(decode, "decode_image", watching)
    mine = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fork_workers()
        with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, workers=2) as images:
            assert [row.failure for row in iter_rows(images, 0, 12)] == [None] * 12
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(mine)


@pytest.mark.parametrize(
    ("side", "batch", "workers", "expected"),
    [(224, 8, 4, 32), (224, 256, 16, 1024), (224, 1, 4, 16), (4096, 1, 16, 10), (4096, 1, 2, 8), (16384, 4, 1, 4)],
)
def test_images_ahead_stay_within_half_a_gibibyte(
    tmp_path: Path, folder: Path, side: int, batch: int, workers: int, expected: int
) -> None:
    """But for the one batch that there must be; memory that nothing was written to takes none."""
    size = spec.Preprocessing(height=side, width=side)
    with loader.ImageLoader(manifest_of(folder, tmp_path), size, workers=workers, batch=batch) as images:
        assert images._ahead * batch == expected


def test_memory_that_was_prepared_is_let_go_when_the_loader_closes(tmp_path: Path, folder: Path) -> None:
    simulated = SimulatedDevice(Latencies())
    images = loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, workers=1, prepare_memory=simulated.page_lock)
    assert simulated.locked == {images._slab.images.ctypes.data}
    assert len(list(iter_rows(images, 0, 12))) == 12
    assert simulated.locked
    images.close()
    assert not simulated.locked
    images.close()  # once is enough


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"batch": 0}, {"in_flight": 0}])
def test_needs_numbers_of_one_at_least(tmp_path: Path, folder: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(errors.InputError, match="at least 1"):
        loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, **wrong)


def test_rows_that_are_not_there(tmp_path: Path, folder: Path) -> None:
    with (
        loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE) as images,
        pytest.raises(errors.StoreError, match="has rows 0 to 12"),
    ):
        list(iter_rows(images, 10, 14))


@pytest.mark.parametrize(
    ("planned", "found", "same"),
    [
        (1_700_000_001_234_567_891, 1_700_000_001_234_567_891, True),
        (1_700_000_001_234_567_891, 1_700_000_001_234_567_800, True),  # NTFS
        (1_700_000_001_234_567_891, 1_700_000_001_234_567_000, True),  # tar
        (1_700_000_001_234_567_891, 1_700_000_001_230_000_000, True),  # exFAT
        (1_700_000_001_234_567_891, 1_700_000_001_000_000_000, True),  # ext3, rsync
        (1_700_000_001_234_567_891, 1_700_000_000_000_000_000, True),  # FAT
        (1_700_000_001_234_567_891, 1_700_000_002_000_000_000, True),  # FAT, rounded up
        (1_700_000_000_000_000_000, 1_700_000_001_000_000_000, False),  # FAT of an odd second, or the next picture
        (1_700_000_001_234_567_891, 1_700_000_001_234_567_892, False),
        (1_700_000_001_234_567_891, 1_700_000_001_334_567_891, False),
        (1_700_000_001_000_000_000, 1_700_000_003_000_000_000, False),
        (1_700_000_000_000_000_000, 1_700_000_002_000_000_000, False),
        (1_700_000_001_234_567_891, 1_800_000_000_000_000_000, False),
        (-1, 2**62, False),
    ],
)
def test_times_of_copies_with_fewer_digits_are_the_same(planned: int, found: int, same: bool) -> None:
    told = load_image.change(load_image.Request(0, "x", 5, planned), 5, found)
    assert (told is None) == same
    assert (load_image.change(load_image.Request(0, "x", 5, found), 5, planned) is None) == same
    assert load_image.change(load_image.Request(0, "x", 5), 5, found) is None


@pytest.mark.parametrize("gone", ["empty", "gone", "a file", "closed"])
def test_a_missing_file_whose_folder_is_gone_is_no_fault_of_the_image(tmp_path: Path, folder: Path, gone: str) -> None:
    (folder / "day1").mkdir()
    (folder / "a00.png").rename(folder / "day1" / "a00.png")
    listed = manifest_of(folder, tmp_path)
    row = listed.read(0, listed.rows).image_ids.index("day1/a00.png")
    (folder / "day1" / "a00.png").unlink()
    if gone != "empty":
        (folder / "day1").rmdir()
    if gone == "a file":
        (folder / "day1").write_text("")
    if gone == "closed":
        (folder / "day1").symlink_to("/proc/1/root/root" if os.getuid() else "day1")
    with loader.ImageLoader(listed, SQUARE) as images, pytest.raises(OSError, match="or its folder"):
        list(iter_rows(images, row, row + 1))
    with loader.ImageLoader(listed, SQUARE, limits=Limits(accept_changed=True)) as images:
        (image,) = iter_rows(images, row, row + 1)
    assert str(image.failure).startswith("cannot be read: ")


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["reading", "decoding"])
def test_what_workers_wait_for_is_told(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None], slow: str
) -> None:
    """Files that are slow to come, and images that are slow to decode, are different things to mend."""
    where, name = (load_image, "read") if slow == "reading" else (decode, "decode_image")
    real, now = getattr(where, name), [0.0]
    clock = types.SimpleNamespace(perf_counter=lambda: now[0], thread_time=time.thread_time)

    def late(*given: Any, **options: Any) -> Any:
        now[0] += 0.05
        return real(*given, **options)

    monkeypatch.setattr(where, name, late)
    for module in (decode_worker, load_image):
        monkeypatch.setattr(module, "time", clock)
    fork_workers()
    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, batch=4) as images:
        batches = list(images.iter_batches(0, 12))
    seconds = Seconds.total(batch.seconds for batch in batches)
    assert getattr(seconds, slow) == pytest.approx(12 * 0.05)
    assert seconds.reading + seconds.decoding == pytest.approx(12 * 0.05)
    assert 0 < seconds.cpu < seconds.reading + seconds.decoding

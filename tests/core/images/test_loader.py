"""The loader yields every row once, in order, within its window; a broken image is one row with a reason."""

import errno
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genenc_core import errors, spec
from genenc_core.images import decode, decoded, geometry, loader, manifest, reading, sources
from genenc_core.images.limits import Limits

SQUARE = spec.Preprocessing(height=24, width=32, fit="crop")


def manifest_of(images: Path, tmp_path: Path) -> manifest.Manifest:
    return manifest.write_manifest(tmp_path / "m.parquet", sources.open_source(str(images)))


def test_rows_come_in_order_and_equal_a_plain_loop(tmp_path: Path, folder: Path) -> None:
    """Whatever the number of threads and the window, each row equals decode + plan + fit of its file."""
    listed = manifest_of(folder, tmp_path)
    entries = listed.read(0, listed.rows)
    for threads, window in ((1, 1), (2, 3), (4, 64)):
        with loader.ImageLoader(listed, SQUARE, threads=threads, window=window) as images:
            got = list(images.iter_rows(2, 11))
        assert [image.row for image in got] == list(range(2, 11))
        for image in got:
            data = Path(entries.paths[image.row]).read_bytes()
            decoded = decode.decode_image(data)
            height, width = decoded.pixels.shape[1:]
            plan = geometry.plan_fit(height, width, SQUARE)
            assert image.pixels is not None
            assert torch.equal(image.pixels, geometry.apply_fit(decoded.pixels, plan, SQUARE))
            assert image.pixels.is_contiguous()
            assert (image.height, image.width, image.orientation) == (height, width, 1)
            assert image.affine == plan.affine
            assert image.sha256 == hashlib.sha256(data).hexdigest()
            assert image.failure is None
            assert image.seconds > 0


def test_block_boundaries(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the manifest in blocks does not show."""
    monkeypatch.setattr(loader, "_BLOCK_ROWS", 5)
    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE) as images:
        assert [image.row for image in images.iter_rows(0, 12)] == list(range(12))
        assert [image.row for image in images.iter_rows(3, 10)] == list(range(3, 10))
        assert list(images.iter_rows(4, 4)) == []


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
    with loader.ImageLoader(listed, spec.Preprocessing(height=45, width=60), threads=3) as images:
        got = dict(zip(listed.read(0, listed.rows).image_ids, images.iter_rows(0, listed.rows), strict=True))
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
        (refused, _) = images.iter_rows(0, 2)
        assert str(refused.failure).startswith(f"changed since planned: was {size} bytes, is {size + 4} bytes")
        assert (refused.cause, refused.pixels) == ("changed", None)
    with loader.ImageLoader(listed, SQUARE, limits=Limits(accept_changed=True)) as images:
        opened = len(list(Path("/proc/self/fd").iterdir()))
        loaded = list(images.iter_rows(0, 7))
        assert len(list(Path("/proc/self/fd").iterdir())) == opened
    failures, changes = [image.failure for image in loaded], [image.changed for image in loaded]
    assert failures[0] is None
    assert changes[0] == f"changed since planned: was {size} bytes, is {size + 4} bytes"
    assert loaded[0].sha256 == hashlib.sha256((folder / "a00.png").read_bytes()).hexdigest()
    assert failures[1] == "cannot be read: No such file or directory"
    assert failures[2] == "not a regular file"
    assert failures[3:6] == [None] * 3
    assert changes[1:6] == [None] * 5
    assert changes[6] == "was missing when the run was planned, 5 bytes when it was read"


@pytest.mark.parametrize(
    ("error", "words"), [(MemoryError(), "memory"), (RuntimeError("torch\nsays no"), "torch says no")]
)
def test_any_error_is_one_row(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    listed = manifest_of(folder, tmp_path)
    poison = (folder / "a03.png").read_bytes()
    real = decode.decode_image

    def failing(data: bytearray, **options: int) -> decoded.Decoded:
        if data == poison:
            raise error
        return real(data, **options)

    monkeypatch.setattr(decode, "decode_image", failing)
    with loader.ImageLoader(listed, SQUARE) as images:
        got = list(images.iter_rows(0, listed.rows))
    assert [image.row for image in got if image.failure] == [3]
    assert words in str(got[3].failure)


def test_a_fault_of_the_process_is_no_images_while_it_is_decoded_either(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_data: bytearray, **_options: int) -> decoded.Decoded:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(decode, "decode_image", failing)
    with (
        loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE) as images,
        pytest.raises(OSError, match="Too many open files"),
    ):
        list(images.iter_rows(0, 1))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows whose loading began, in the order in which they did."""
    begun: list[int] = []
    real = reading.Reader.begin

    def counting(reader: reading.Reader, request: reading.Request) -> loader.LoadedImage | reading.Begun:
        begun.append(request.row)
        return real(reader, request)

    monkeypatch.setattr(reading.Reader, "begin", counting)
    return begun


@pytest.mark.parametrize("window", [1, 3, 5])
def test_window_bounds_the_images_ahead(tmp_path: Path, folder: Path, counted: list[int], window: int) -> None:
    """While the consumer holds an image, at most `window` others are begun, however long it takes."""
    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, threads=4, window=window) as images:
        for yielded, _image in enumerate(images.iter_rows(0, 12), start=1):
            time.sleep(0.01)
            assert len(counted) - yielded <= window
    assert sorted(counted) == list(range(12))


def test_closing_early_cancels_what_has_not_begun(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    release = threading.Event()
    real = reading.Reader.begin

    def slow(reader: reading.Reader, request: reading.Request) -> loader.LoadedImage | reading.Begun:
        if request.row > 1:  # with a window of ten, two are waited for at once
            release.wait(10)
        return real(reader, request)

    monkeypatch.setattr(reading.Reader, "begin", slow)
    with loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, threads=2, window=10) as images:
        iterator = images.iter_rows(0, 12)
        assert next(iterator).row == 0
        iterator.close()
        release.set()
        again = [image.row for image in images.iter_rows(5, 8)]
    assert again == [5, 6, 7]
    assert len([row for row in counted if row not in (0, 1, 5, 6, 7)]) <= 2


def test_close_ends_the_threads(tmp_path: Path, folder: Path) -> None:
    before = threading.active_count()
    images = loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, threads=3)
    assert threading.active_count() == before + 3
    images.close()
    images.close()
    assert threading.active_count() == before


def test_workers_use_one_torch_thread_and_nobody_else_is_changed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.set_num_threads also sets the default of threads to come: that must be as before, too."""
    listed = manifest_of(folder, tmp_path)

    def in_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    seen: list[int] = []
    real = decode.decode_image

    def watching(data: bytearray, **options: int) -> decoded.Decoded:
        seen.append(torch.get_num_threads())
        return real(data, **options)

    monkeypatch.setattr(decode, "decode_image", watching)
    mine = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with loader.ImageLoader(listed, SQUARE, threads=2) as images:
            list(images.iter_rows(0, listed.rows))
            assert in_new_thread() == 3
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(mine)
    assert set(seen) == {1}


@pytest.mark.parametrize(("threads", "window"), [(0, 1), (1, 0)])
def test_needs_a_thread_and_a_window(tmp_path: Path, folder: Path, threads: int, window: int) -> None:
    with pytest.raises(errors.InputError, match="at least one thread"):
        loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE, threads=threads, window=window)


def test_rows_that_are_not_there(tmp_path: Path, folder: Path) -> None:
    with (
        loader.ImageLoader(manifest_of(folder, tmp_path), SQUARE) as images,
        pytest.raises(errors.StoreError, match="has the rows 0 to 12"),
    ):
        list(images.iter_rows(10, 14))


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
    told = reading.change(reading.Request(0, "x", 5, planned), 5, found)
    assert (told is None) == same
    assert (reading.change(reading.Request(0, "x", 5, found), 5, planned) is None) == same
    assert reading.change(reading.Request(0, "x", 5), 5, found) is None


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
    with (
        loader.ImageLoader(listed, SQUARE) as images,
        pytest.raises(FileNotFoundError, match="its folder neither"),
    ):
        list(images.iter_rows(row, row + 1))
    with loader.ImageLoader(listed, SQUARE, limits=Limits(accept_changed=True)) as images:
        (image,) = images.iter_rows(row, row + 1)
    assert str(image.failure).startswith("cannot be read: ")

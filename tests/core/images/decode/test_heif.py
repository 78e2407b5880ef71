"""AVIF and HEIC, upright exactly once, where their decoders are installed; else what to install."""

import dataclasses
import io
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import decoding
from genenc_core.images.decode import decode, decoded, heif
from genenc_core.images.sources import folders, image_source, manifest

KINDS = ["AVIF", "HEIC"]


def scene() -> np.ndarray:
    y, x = np.mgrid[0:48, 0:64]
    rgb = np.stack([x * 4, y * 5, (x + y) * 2], axis=2).clip(0, 255).astype(np.uint8)
    rgb[:10, :20] = 250, 10, 10
    return rgb


def written(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    if not heif.is_installed(kind):
        pytest.skip(f"no decoder for {kind}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    if kind == "AVIF":
        image.save(buffer, "AVIF", quality=100, subsampling="4:4:4", exif=exif.tobytes())
    else:
        import pillow_heif

        pillow_heif.from_pillow(image).save(buffer, quality=-1, chroma=444, exif=exif.tobytes())
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return decoding.pixels_of(data).astype(float)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("kind", KINDS)
def test_values(kind: str, mode: str) -> None:
    image = Image.fromarray(scene())
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None] * 4, 48, axis=0)))
    image = image.convert(mode)
    samples = np.asarray(image.convert("RGBA")).astype(float)
    expected = samples[..., :3] * samples[..., 3:] / 255
    assert np.abs(pixels_of(written(image, kind)) - expected).max() <= 3


def test_an_avif_that_is_to_be_cropped_is_refused() -> None:
    """Pillow shows all of it, libheif the part."""
    whole = written(Image.fromarray(scene()), "AVIF")
    with pytest.raises(decoded.ImageUnreadable, match=r"clean aperture \(clap\)"):
        decode.decode_image(whole.replace(b"pixi", b"clap"))
    assert np.array_equal(pixels_of(whole + b"clap"), pixels_of(whole))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_upright_exactly_once(kind: str, orientation: int) -> None:
    upright = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 3),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    found = pixels_of(written(Image.fromarray(scene()), kind, orientation))
    expected = upright[orientation](scene())
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_or_too_large_is_refused(kind: str) -> None:
    data = written(Image.fromarray(scene()), kind)
    for end in range(8, len(data) - 1, 97):
        with pytest.raises(decoded.ImageUnreadable):
            decode.decode_image(data[:end])
    with pytest.raises(decoded.ImageUnreadable, match="above the limit"):
        decode.decode_image(data, max_pixels=100)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_decoder_is_named_with_remedy(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(Image.fromarray(scene()), kind)
    name = f"b.{kind.lower()}"
    (tmp_path / name).write_bytes(data)
    (tmp_path / "a.png").write_bytes(b"x")
    assert list(chain.from_iterable(folders.walk(tmp_path, ("**",)))) == ["a.png", name]
    monkeypatch.setattr(heif, "is_installed", lambda _: False)
    with pytest.raises(decoded.ImageUnreadable, match=r"not installed: install"):
        decode.decode_image(data)
    left_out = folders.LeftOut()
    assert list(chain.from_iterable(folders.walk(tmp_path, ("**",), left_out))) == ["a.png"]
    assert f"for .{kind.lower()} install" in folders.describe(left_out.kinds)


def test_a_manifest_keeps_what_counted_as_an_image(tmp_path: Path) -> None:
    """Also one of an earlier version, which knew neither kind and recorded nothing."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.avif", "c.heic"):
        (photos / name).write_bytes(b"x")
    source = dataclasses.replace(image_source.open_source(str(photos)), extensions=image_source.EXTENSIONS)
    few = manifest.write_manifest(tmp_path / "few", source)
    assert (few.rows, few.extensions) == (1, image_source.EXTENSIONS)
    more = manifest.write_manifest(tmp_path / "more", dataclasses.replace(source, extensions=("png", "avif", "heic")))
    assert (more.rows, more.extensions) == (3, ("png", "avif", "heic"))
    assert manifest._extensions_of({}) == image_source.EXTENSIONS


def test_a_video_is_no_image() -> None:
    with pytest.raises(decoded.ImageUnreadable, match="video"):
        decode.decode_image(b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(40))


@pytest.mark.parametrize("share", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_end_is_zeros_is_refused(kind: str, share: float) -> None:
    """A download or copy that broke off in a file of the whole size."""
    data = written(Image.fromarray(scene()), kind)
    kept = data.index(b"mdat") + int((len(data) - data.index(b"mdat")) * share)
    with pytest.raises(decoded.ImageUnreadable, match=f"truncated {kind}"):
        decode.decode_image(data[:kept] + bytes(len(data) - kept))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_is_refused(kind: str, large: bool) -> None:
    """Whether its pixels' box states its size in 32 bits or in 64, as phones do; what follows the image is its own."""
    data = written(Image.fromarray(scene()), kind)
    at = data.index(b"mdat") - 4
    size = len(data) - at
    head = (
        (1).to_bytes(4, "big") + b"mdat" + (size + 8).to_bytes(8, "big") if large else size.to_bytes(4, "big") + b"mdat"
    )
    whole = data[:at] + head + data[at + 8 :]
    for complete in (data, whole, whole + b"\0\0\xff\xfftail"):
        assert not heif.is_truncated(complete)
    assert heif.is_truncated(whole[:-1])
    with pytest.raises(decoded.ImageUnreadable, match=f"truncated {kind}"):
        decode.decode_image(whole[:-20])

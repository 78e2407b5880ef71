"""Files that run code: not without a digest or a word, not when they change meanwhile, and nothing is unpacked."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import resolve, weights
from genenc_core.runtime import artifact_kinds, backends, loading
from genenc_core.runtime.formats import table
from genenc_core.system import digests

IMAGES = torch.zeros(1, 3, 16, 16)


class Payload(nn.Module):
    """Writes a file whenever it is run."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.save(images, self.path)
        return images


def scripted(path: Path, mark: Path) -> spec.RuntimeModelSpec:
    torch.jit.script(Payload(str(mark))).save(path)
    return spec.RuntimeModelSpec(
        model_id="payload",
        display_name="payload",
        weights_path=str(path),
        inputs=(spec.SlotSpec(name="image", shape=(3, 16, 16)),),
        outputs=(spec.SlotSpec(name="features", shape=(3, 16, 16)),),
    )


def with_digest(found: spec.RuntimeModelSpec, digest: str) -> spec.RuntimeModelSpec:
    info = spec.ArtifactInfo(
        file="x.pt",
        sha256=digest,
        bytes=1,
        seconds=0.0,
        batches_compared=(1,),
        max_abs_error=0.0,
        max_rel_error=0.0,
        tolerance=1e-5,
    )
    return found.model_copy(update={"genenc": spec.GenencBlock(artifact=info)})


def test_torchscript_needs_digest_or_trust(tmp_path: Path) -> None:
    path, mark = tmp_path / "x.pt", tmp_path / "mark"
    found = scripted(path, mark)
    for refused in (found, with_digest(found, "0" * 64)):
        with pytest.raises(errors.InputError, match=r"--trust|changed or damaged"):
            backends.load_encoder(refused, device="cpu")
    assert not mark.exists()
    backends.load_encoder(with_digest(found, digests.ARTIFACT.hex_of_file(path)), device="cpu")(IMAGES)
    assert mark.exists()
    mark.unlink()
    backends.load_encoder(found, device="cpu", trust=True)(IMAGES)
    assert mark.exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_file_replaced_after_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    path, mark = tmp_path / "x.pt", tmp_path / "mark"
    found = scripted(path, tmp_path / "harmless")
    if not trusted:
        found = with_digest(found, digests.ARTIFACT.hex_of_file(path))
    check = loading._check

    def replaced_after(*arguments: Any, **options: Any) -> str:
        digest = check(*arguments, **options)
        scripted(tmp_path / "other.pt", mark)
        (tmp_path / "other.pt").replace(path)
        return digest

    monkeypatch.setattr(loading, "_check", replaced_after)
    with pytest.raises(errors.InputError, match="changed or damaged"):
        backends.load_encoder(found, device="cpu", trust=trusted)(IMAGES)
    assert not mark.exists()


def test_loaded_copy_is_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    (tmp_path / "scratch").mkdir()
    with artifact_kinds.private_copy(path, tmp_path / "scratch") as (copy, digest):
        path.write_bytes(b"after!")
        assert copy.read_bytes() == b"before"
        assert list((tmp_path / "scratch").iterdir()) == []
    path.write_bytes(b"before")
    assert digest == digests.ARTIFACT.hex_of_file(path)


def test_no_space_for_the_copy_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (
        pytest.raises(errors.InputError, match=r"cannot be copied to .*absent"),
        artifact_kinds.private_copy(tmp_path / "file", tmp_path / "absent"),
    ):
        pass


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["evil.pth", "evil.pt", "evil.bin", "evil.safetensors"])
def test_pickles_as_weights_are_not_loaded(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    torch.save({"weight": _Touch(mark)}, path)
    (tmp_path / f"plain-{name}").write_bytes(pickle.dumps({"weight": _Touch(mark)}))
    for file in (path, tmp_path / f"plain-{name}"):
        with pytest.raises(errors.InputError):
            weights.read_state(weights.parse_weights(str(file)))
        with pytest.raises(errors.InputError):
            resolve.build_encoder(resolve.ModelRequest(name="tiny_models:conv", weights=str(file), image_size=(32, 32)))
    assert not mark.exists()
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("kind", ["AOTInductor", "exported program"])
def test_path_traversal_in_a_package_is_harmless(tmp_path: Path, kind: str) -> None:
    """A package is a zip; none of its members is written under a name of its own."""
    path = tmp_path / "in" / "model.pt2"
    path.parent.mkdir()
    member = "model/data/aotinductor/model/../../../../../evil.so" if kind == "AOTInductor" else "models/model.json"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"{}")
        archive.writestr("../../evil.txt", b"evil")
        archive.writestr("/tmp/../evil-absolute.txt", b"evil")
    before = set(tmp_path.rglob("*"))
    assert artifact_kinds.artifact_kind(path) == kind
    known = next(item for item in table.FORMATS.values() if item.kind == kind)
    with pytest.raises(errors.InputError):
        known.load(path, torch.device("cpu"), tmp_path / "in")
    assert set(tmp_path.rglob("*")) == before


def test_symlinked_artifact_is_followed(tmp_path: Path) -> None:
    """The digest is of the content that is loaded, wherever a link leads."""
    found = scripted(tmp_path / "real.pt", tmp_path / "mark")
    link = tmp_path / "link.pt"
    link.symlink_to(tmp_path / "real.pt")
    linked = with_digest(found, digests.ARTIFACT.hex_of_file(link)).model_copy(update={"weights_path": str(link)})
    backends.load_encoder(linked, device="cpu")
    scripted(tmp_path / "other.pt", tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "other.pt")
    with pytest.raises(errors.InputError, match="changed or damaged"):
        backends.load_encoder(linked, device="cpu")

"""Code that files name is imported at the user's word only; what was trusted once is that code in that file."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genenc_core import errors, spec
from genenc_core.factory import model_file
from genenc_core.models import resolve, trust
from genenc_core.run import model_cache
from genenc_core.runtime import backends

CODE = """
import pathlib
import torch

pathlib.Path({mark!r}).touch()

def factory(**_options):
    return torch.nn.Conv2d(3, 4, 8, 8)
"""
MODEL = "evil_module:factory"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears when the module `evil_module` of the working directory is imported."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "evil_module.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "mark"
    sys.modules.pop("evil_module", None)


def foreign_spec(kind: spec.SourceKind = "python", **more: object) -> spec.RuntimeModelSpec:
    source = spec.SourceInfo.model_validate({"kind": kind, "name": MODEL, "weights": "random:0", **more})
    return spec.RuntimeModelSpec(
        model_id="foreign",
        display_name="foreign",
        inputs=(spec.SlotSpec(name="image", shape=(3, 32, 32)),),
        outputs=(spec.SlotSpec(name="features", shape=(4, 4, 4)),),
        genenc=spec.GenencBlock(source=source),
    )


def test_code_of_a_spec_needs_trust(mark: Path) -> None:
    with pytest.raises(errors.InputError, match=r"model spec 'foreign' names the code 'evil_module:factory'.*--trust"):
        backends.load_encoder(foreign_spec(), device="cpu")
    assert not mark.exists()
    assert backends.load_encoder(foreign_spec(), device="cpu", trust=True).outputs[0].shape == (4, 4, 4)
    assert mark.exists()


def test_code_of_a_factory_spec_needs_trust(mark: Path) -> None:
    arguments = json.dumps({"task": "segmentation", "backbone": f"python_{MODEL}", "decoder": "FCNDecoder"})
    found = foreign_spec("factory", name="seg", arguments=arguments)
    with pytest.raises(errors.InputError, match="names the code 'evil_module:factory'"):
        backends.load_encoder(found, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("backbone", [MODEL, f"python_{MODEL}"])
def test_code_of_a_model_file_needs_trust(mark: Path, backbone: str) -> None:
    path = mark.with_name("seg.yaml")
    path.write_text(
        json.dumps({"task": "segmentation", "backbone": backbone, "decoder": "FCNDecoder", "num_classes": 2})
    )
    with pytest.raises(errors.InputError, match=r"model file .*seg\.yaml' names the code 'evil_module:factory'"):
        resolve.build_encoder(resolve.ModelRequest(name=str(path), weights="random:0"))
    assert not mark.exists()
    assert "evil_module" in model_file.read(path, trusted=True)
    assert mark.exists()


def test_code_named_by_the_user_is_remembered(mark: Path) -> None:
    """Like this a run with an own model is resumed by whoever made it, and by nobody else without --trust."""
    model_cache.EncoderCache().build(resolve.ModelRequest(name=MODEL, weights="random:0", image_size=(32, 32)))
    assert trust.known(MODEL)
    assert backends.load_encoder(foreign_spec(), device="cpu").backend == "eager"
    assert not trust.known("evil_module:another")


def test_same_name_in_another_file_is_not_trusted(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_cache.EncoderCache().build(resolve.ModelRequest(name=MODEL, weights="random:0", image_size=(32, 32)))
    sys.modules.pop("evil_module")
    mark.unlink()
    other = mark.with_name("unpacked")
    other.mkdir()
    (other / "evil_module.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.chdir(other)
    with pytest.raises(errors.InputError, match="--trust"):
        backends.load_encoder(foreign_spec(), device="cpu")
    assert not mark.exists()


def test_trust_file_writable_by_others_is_ignored(mark: Path) -> None:
    model_cache.EncoderCache().build(resolve.ModelRequest(name=MODEL, weights="random:0", image_size=(32, 32)))
    noted = mark.with_name("state") / "genenc" / "trusted-code"
    assert noted.stat().st_mode & 0o777 == 0o600
    assert noted.parent.stat().st_mode & 0o777 == 0o700
    noted.chmod(0o666)
    assert not trust.known(MODEL)


@pytest.mark.parametrize("code", [":", "a:", ":b", "..:x", "a..b:c", "absent_module:x", "a\x00b:c", "é" * 300 + ":x"])
def test_invalid_code_names_are_refused(mark: Path, code: str) -> None:
    assert not trust.known(code)
    with pytest.raises(errors.InputError):
        trust.require(code, who="it", trust=False)


def test_known_imports_nothing(mark: Path) -> None:
    package = Path("evil_package")
    package.mkdir()
    (package / "__init__.py").write_text(CODE.format(mark=str(mark)))
    (package / "inner.py").write_text("")
    assert not trust.known("evil_package.inner:factory")
    assert not mark.exists()
    assert os.path.realpath(package / "inner.py") == trust._place("evil_package.inner:factory")


def test_user_without_home_is_not_remembered(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    model_cache.EncoderCache().build(resolve.ModelRequest(name=MODEL, weights="random:0", image_size=(32, 32)))
    assert mark.exists()
    assert not trust.known(MODEL)

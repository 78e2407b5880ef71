"""A run of somebody's own model is continued with the same code and files only."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.models import resolve, user_code
from genenc_core.run import driver, model_cache, outputs_check, planning
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from genenc_core.runtime.encoder import Encoder

Extract = Callable[..., driver.Result]

SCALED = """
from torch import nn
from changing_parts import scale

class Net(nn.Module):
    genenc = {"files": ("offset.txt",)}
    def forward(self, images):
        return nn.functional.avg_pool2d(images, 8) * scale + float(open("offset.txt").read())

def factory(): return Net()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model without parameters, of two modules and a file that it reads."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "changing_net.py").write_text(SCALED)
    (folder / "changing_parts.py").write_text("scale = 2\n")
    (folder / "offset.txt").write_text("0.5")
    yield folder
    forget()


def forget() -> None:
    """Import and build anew, as a new process does."""
    model_cache.CACHE.clear()
    for name in [name for name in sys.modules if name.startswith("changing_")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def begun(extract: Extract) -> None:
    """Begin a run and stop it after some images."""
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract(model="changing_net:factory", weights="pretrained")


def resumed(root: Path) -> driver.Result:
    return driver.resume(RunFolder(root), "pending", Changes(device="cpu", trust=True))


CHANGES = {
    "its module": ("changing_net.py", SCALED + "# edited\n", "changing_net.py changed"),
    "what it imports": ("changing_parts.py", "scale = 3\n", "changing_parts.py changed"),
    "a file that it declares": ("offset.txt", "0.25", "offset.txt changed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_changed_code_or_file_is_refused_by_name(extract: Extract, tmp_path: Path, project: Path, change: str) -> None:
    name, text, words = CHANGES[change]
    begun(extract)
    committed = RunFolder(tmp_path / "run").store.committed()
    before = (project / name).read_text()
    (project / name).write_text(text)
    forget()
    with pytest.raises(errors.InputError, match=words):
        resumed(tmp_path / "run")
    forget()
    with pytest.raises(errors.StoreError, match=rf"another run.*{name}"):
        extract(model="changing_net:factory", weights="pretrained")
    assert RunFolder(tmp_path / "run").store.committed() == committed
    # The same bytes, written anew elsewhere: it is the same run.
    (project / name).write_text(before)
    moved = project.rename(tmp_path / "moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(moved)
        forget()
        assert resumed(tmp_path / "run").status.complete


@pytest.mark.slow
def test_a_source_changed_within_a_second_is_the_one_that_runs(
    extract: Extract, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python tells bytecode that is out of date by the source's size and whole seconds of its time."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    vectors = []
    for number, scale in enumerate((2, 3)):
        part = project / "changing_parts.py"
        part.write_text(f"scale = {scale}\n")
        os.utime(part, (1_700_000_000, 1_700_000_000))
        forget()
        extract(model="changing_net:factory", weights="pretrained", out=str(tmp_path / f"run{number}"))
        vectors.append(zarr.open_array(tmp_path / f"run{number}" / "features.zarr" / "features")[:])
    np.testing.assert_allclose((vectors[1] - 0.5) * 2, (vectors[0] - 0.5) * 3, rtol=1e-5)
    assert not (project / "__pycache__").exists()


def test_identity_holds_digests_of_code_and_files(extract: Extract, tmp_path: Path, project: Path) -> None:
    extract(model="changing_net:factory", weights="pretrained")
    identity = RunFolder(tmp_path / "run").identity
    assert set(identity["code"]) == {"changing_net.py", "changing_parts.py"}
    assert set(identity["files"]) == {"offset.txt"}
    assert identity["weights"] is None


LATE = """
import importlib
import os
from torch import nn
class Net(nn.Module):
    def forward(self, images):
        maps = nn.functional.avg_pool2d(images, 8)
        if os.path.exists("now"):
            return maps * importlib.import_module("changing_" + "late").scale
        return maps * 2
def factory(): return Net()
"""


@pytest.fixture
def late(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose model imports one of its modules when there is a file `now`."""
    monkeypatch.syspath_prepend(project)
    (project / "changing_net.py").write_text(LATE)
    (project / "changing_late.py").write_text("scale = 2\n")
    return project


def test_code_that_is_first_imported_for_the_fixed_images_is_refused(
    extract: Extract, tmp_path: Path, late: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch = outputs_check.sketch

    def later(encoder: Encoder) -> dict[str, object]:
        (late / "now").touch()
        return sketch(encoder)

    monkeypatch.setattr(outputs_check, "sketch", later)
    with pytest.raises(errors.InputError, match=r"changing_late\.py while encoding images"):
        extract(model="changing_net:factory", weights="pretrained")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_late_import_while_encoding_fails_the_shard(extract: Extract, tmp_path: Path, late: Path) -> None:
    """No digest of it is in the run, so nobody would see that it changed before the next session."""
    begun(extract)
    committed = RunFolder(tmp_path / "run").store.committed()
    (late / "now").touch()
    result = resumed(tmp_path / "run")
    assert "changing_late.py while encoding images" in str(result.failures)
    assert RunFolder(tmp_path / "run").store.committed() == committed
    # Imported at the top, it has a digest like all others.
    (late / "changing_net.py").write_text("import changing_late\n" + LATE)
    forget()
    again = extract(model="changing_net:factory", weights="pretrained", out=str(tmp_path / "new"))
    assert again.status.complete
    assert "changing_late.py" in RunFolder(tmp_path / "new").identity["code"]


def test_runs_without_digests_of_code_go_on(late: Path) -> None:
    """Those of genenc 0.1.0, and code that is in no file."""
    before = frozenset(sys.modules)
    importlib.import_module("changing_net")
    importlib.import_module("changing_late")
    user_code.refuse_late_imports("changing_net:factory", None, before)
    user_code.refuse_late_imports(None, {}, before)
    user_code.refuse_late_imports("changing_net:factory", {"changing_net.py": "", "changing_late.py": ""}, before)
    with pytest.raises(errors.EncoderError, match=r"imported changing_late\.py while encoding"):
        user_code.refuse_late_imports("changing_net:factory", {"changing_net.py": ""}, before)


CONVOLUTION = """
from torch import nn
def factory(): return nn.Conv2d(3, 2, 8, 8)
"""
READING = """
import os
import torch
from torch import nn

class Net(nn.Module):
    genenc = {"files": ("offset.txt",)}
    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(float(open("offset.txt").read()) + float(os.environ["MORE"])))
    def forward(self, images):
        return nn.functional.avg_pool2d(images, 8) + self.offset

def factory(): return Net()
"""


def mean_of(root: Path) -> float:
    return float(zarr.open_group(root / "features.zarr", mode="r")["features"][:].mean())


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_a_loop_over_what_a_factory_reads_makes_a_run_of_each(
    extract: Extract, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Files, declared or not, variables of the environment; also where the model is built ahead."""
    (project / "changing_net.py").write_text(READING)
    create = planning.create_run
    if ahead:
        monkeypatch.setattr(planning, "create_run", lambda given: (model_cache.warm(given), create(given))[1])
    found, digests = [], []
    for number, (offset, more) in enumerate([("1", "0"), ("2", "0"), ("2", "3")]):
        (project / "offset.txt").write_text(offset)
        monkeypatch.setenv("MORE", more)
        out = tmp_path / f"run-{number}"
        extract(model="changing_net:factory", weights="pretrained", out=str(out))
        found.append(mean_of(out))
        digests.append(RunFolder(out).identity["weights"])
    assert np.diff(found) == pytest.approx([1, 3], abs=1e-5)
    assert len({*digests}) == 3


def test_model_built_ahead_is_built_once(extract: Extract, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, build, create = [], resolve.build_encoder, planning.create_run
    monkeypatch.setattr(resolve, "build_encoder", lambda request: (built.append(request), build(request))[1])
    monkeypatch.setattr(planning, "create_run", lambda given: (model_cache.warm(given), create(given))[1])
    extract(model="changing_net:factory", weights="pretrained")
    assert len(built) == 1


def test_a_module_of_the_same_name_in_another_folder_is_another(
    extract: Extract, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "changing_net.py").write_text(CONVOLUTION)
    given = {"model": "changing_net:factory", "weights": "random:0"}
    extract(**given)
    monkeypatch.chdir(tmp_path)
    extract(**given)  # nothing here: what is imported goes on
    other = tmp_path / "other"
    other.mkdir()
    (other / "changing_net.py").write_text(CONVOLUTION)
    monkeypatch.chdir(other)
    with pytest.raises(errors.InputError, match=r"imported 'changing_net' from .*project.*start a new process"):
        extract(**given, out=str(tmp_path / "elsewhere"))

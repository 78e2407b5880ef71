"""A run of somebody's own model is continued with the same code and files only."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genenc_core import errors
from genenc_core.encoding import control
from genenc_core.export.encoder import Encoder
from genenc_core.models import own_code
from genenc_core.run import driver, encoders, outputs_check
from genenc_core.run.folder import RunFolder

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
    encoders.CACHE.clear()
    for name in [name for name in sys.modules if name.startswith("changing_")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def begun(extract: Callable[..., driver.Result]) -> None:
    """Begin a run and stop it after some images."""
    watch = control.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with control.use(watch), pytest.raises(errors.Stopped):
        extract(model="changing_net:factory", weights="pretrained")


def resumed(root: Path) -> driver.Result:
    return driver.resume(root, "pending", driver.options_for(root, device="cpu", trust=True))


CHANGES = {
    "its module": ("changing_net.py", SCALED + "# edited\n", "changing_net.py changed"),
    "what it imports": ("changing_parts.py", "scale = 3\n", "changing_parts.py changed"),
    "a file that it declares": ("offset.txt", "0.25", "offset.txt changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_whose_code_or_file_changed_is_refused_and_the_file_named(
    extract: Callable[..., driver.Result], tmp_path: Path, project: Path, change: str
) -> None:
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


def test_the_identity_holds_code_and_files_and_no_digest_of_nothing(
    extract: Callable[..., driver.Result], tmp_path: Path, project: Path
) -> None:
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
    extract: Callable[..., driver.Result], tmp_path: Path, late: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch = outputs_check.sketch

    def later(encoder: Encoder) -> dict[str, object]:
        (late / "now").touch()
        return sketch(encoder)

    monkeypatch.setattr(outputs_check, "sketch", later)
    with pytest.raises(errors.InputError, match=r"changing_late\.py only while it encoded images"):
        extract(model="changing_net:factory", weights="pretrained")
    assert not (tmp_path / "run").exists()


def test_code_that_is_first_imported_for_a_later_image_fails_the_shard(
    extract: Callable[..., driver.Result], tmp_path: Path, late: Path
) -> None:
    """No digest of it is in the run, so nobody would see that it changed before the next session."""
    begun(extract)
    committed = RunFolder(tmp_path / "run").store.committed()
    (late / "now").touch()
    result = resumed(tmp_path / "run")
    assert "changing_late.py only while it encoded images" in str(result.failures)
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
    own_code.refuse_late("changing_net:factory", None, before)
    own_code.refuse_late(None, {}, before)
    own_code.refuse_late("changing_net:factory", {"changing_net.py": "", "changing_late.py": ""}, before)
    with pytest.raises(errors.EncoderError, match=r"imported changing_late\.py only"):
        own_code.refuse_late("changing_net:factory", {"changing_net.py": ""}, before)

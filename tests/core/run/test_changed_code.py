"""A run of somebody's own model is continued with the same code and files only."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genenc_core import errors
from genenc_core.encoding import control
from genenc_core.run import driver, encoders
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

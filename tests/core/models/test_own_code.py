"""A user's own code: which files its digests cover, and that nothing of the working directory runs unasked."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from genenc_core import errors
from genenc_core.models import own_code, sources

NET = "from torch import nn\ndef factory():\n    return nn.Conv2d(3, 4, 8, 8)\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that is the working directory; what is imported from it is forgotten."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()


def digests(code: str) -> own_code.Digests:
    own_code.found(code)
    return own_code.digests(code, nn.Identity())


@pytest.mark.parametrize(
    "statement",
    [
        "from lab_a import helper",
        "from lab_a.helper import value",
        "import lab_a.helper",
        "import lab_a.helper as other",
        "from . import helper",
        "from .helper import value",
        "from .helper import *",
        "def later():\n    from . import helper",
        "def later():\n    import lab_a.helper",
        "try:\n    import absent_altogether\nexcept ImportError:\n    from . import helper",
        "import importlib\nhelper = importlib.import_module('lab_a.helper')",
        "import importlib\nhelper = importlib.import_module('.helper', __package__)",
        "from . import between",
    ],
)
@pytest.mark.parametrize("package", ["with __init__", "without"])
def test_the_digests_cover_what_the_code_imports_of_its_project(project: Path, statement: str, package: str) -> None:
    write(project, lab_a__net=f"{statement}\ndef factory(): ...\n", lab_a__helper="value = 1\n")
    write(project, lab_a__between="from lab_a.helper import value\n", lab_a__unrelated="value = 2\n")
    wanted = {"lab_a/net.py", "lab_a/helper.py"} | ({"lab_a/between.py"} if "between" in statement else set())
    if package == "with __init__":
        (project / "lab_a/__init__.py").write_text("")
        wanted.add("lab_a/__init__.py")
    before = digests("lab_a.net:factory")
    assert set(before.code) == wanted
    # The digests are of names below the project's folder and of bytes: not of where it stands.
    assert not any(str(project) in name for name in before.code)


def test_installed_packages_and_the_standard_library_are_not_covered(project: Path) -> None:
    write(project, plain_net="import json, torch, numpy.linalg, genenc_core.spec\nfrom torch import nn\ndef f(): ...\n")
    write(project, json="1 / 0", numpy="1 / 0")
    assert set(digests("plain_net:f").code) == {"plain_net.py"}
    assert set(digests("timm.models.resnet:resnet18").code) >= {"timm/models/resnet.py", "timm/__init__.py"}
    assert {name.partition("/")[0] for name in digests("timm.models.resnet:resnet18").code} == {"timm"}


def test_code_that_changed_after_its_import_is_not_taken_for_what_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, edited_net="import edited_helper\ndef factory(): ...\n", edited_helper="value = 1\n")
    before = digests("edited_net:factory")
    write(project, edited_helper="value = 22\n")
    with pytest.raises(errors.InputError, match=r"changed since this process imported it \(edited_helper.py changed\)"):
        digests("edited_net:factory")
    monkeypatch.syspath_prepend(project)
    importlib.reload(sys.modules["edited_helper"])
    importlib.reload(sys.modules["edited_net"])
    assert digests("edited_net:factory").code != before.code


def test_declared_files_are_covered_and_must_be_there(project: Path, tmp_path: Path) -> None:
    (project / "weights.bin").write_bytes(b"1")
    declaring = "def declaring(*files):\n    net = factory()\n    net.genenc = {'files': files}\n"
    write(project, declaring_net=NET + declaring + "    return nn.Sequential(net)\n")
    make = own_code.found("declaring_net:declaring")
    found = own_code.digests("declaring_net:declaring", make("weights.bin"))
    assert set(found.files) == {"weights.bin"}
    assert found == own_code.digests("declaring_net:declaring", make(str(tmp_path / "weights.bin")))
    (project / "weights.bin").write_bytes(b"2")
    assert found.files != own_code.digests("declaring_net:declaring", make("weights.bin")).files
    for absent in ("absent.bin", "."):
        with pytest.raises(errors.InputError, match=r"declares in 'genenc', cannot be read"):
            own_code.digests("declaring_net:declaring", make(absent))


def test_a_hostile_working_directory_runs_nothing_but_what_was_named(project: Path) -> None:
    """Modules that are not imported yet, by names of the standard library and of installed packages."""
    write(project, named_net="import this_is_ours, colorsys, wave, zarr.testing\n" + NET, this_is_ours="")
    for name in ("colorsys", "wave", "json", "numpy", "typing_extensions", "torch"):
        (project / f"{name}.py").write_text("open('ran', 'w').close(); 1 / 0\n")
    for name in ("colorsys", "wave"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    before = list(sys.path)
    built = sources.build_encoder(sources.ModelRequest(name="named_net:factory", image_size=(32, 32)))
    assert not (project / "ran").exists()
    assert set(built.own.code) == {"named_net.py", "this_is_ours.py"}
    assert sys.path == before


def test_a_model_without_tensors_has_no_digest_of_weights(project: Path) -> None:
    write(project, bare_net="from torch import nn\ndef factory():\n    return nn.AvgPool2d(8)\n")
    assert sources.build_encoder(sources.ModelRequest(name="bare_net:factory")).weights_sha256 is None

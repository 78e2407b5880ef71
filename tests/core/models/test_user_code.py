"""A user's own code: which files its digests cover, and that nothing of the working directory runs unasked."""

import importlib
import os
import py_compile
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from genenc_core import errors
from genenc_core.models import resolve, user_code
from genenc_core.system.digests import CODE

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


def digests(code: str) -> user_code.Digests:
    user_code.load_object(code)
    return user_code.digests(code, nn.Identity())


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
def test_digests_cover_project_imports(project: Path, statement: str, package: str) -> None:
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


def test_digests_exclude_installed_packages(project: Path) -> None:
    write(project, plain_net="import json, torch, numpy.linalg, genenc_core.spec\nfrom torch import nn\ndef f(): ...\n")
    write(project, json="1 / 0", numpy="1 / 0")
    assert set(digests("plain_net:f").code) == {"plain_net.py"}
    installed = set(digests("iniconfig:IniConfig").code)
    assert installed >= {"iniconfig/__init__.py", "iniconfig/exceptions.py"}
    assert {name.partition("/")[0] for name in installed} == {"iniconfig"}


def test_code_changed_after_its_import_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, edited_net="import edited_helper\ndef factory(): ...\n", edited_helper="value = 1\n")
    before = digests("edited_net:factory")
    write(project, edited_helper="value = 22\n")
    with pytest.raises(errors.InputError, match=r"changed since this process imported it \(edited_helper.py changed\)"):
        digests("edited_net:factory")
    monkeypatch.syspath_prepend(project)
    importlib.reload(sys.modules["edited_helper"])
    importlib.reload(sys.modules["edited_net"])
    assert digests("edited_net:factory").code != before.code


def test_declared_files_are_digested_and_must_exist(project: Path, tmp_path: Path) -> None:
    (project / "weights.bin").write_bytes(b"1")
    declaring = "def declaring(*files):\n    net = factory()\n    net.genenc = {'files': files}\n"
    write(project, declaring_net=NET + declaring + "    return nn.Sequential(net)\n")
    make = user_code.load_object("declaring_net:declaring")
    found = user_code.digests("declaring_net:declaring", make("weights.bin"))
    assert set(found.files) == {"weights.bin"}
    assert found == user_code.digests("declaring_net:declaring", make(str(tmp_path / "weights.bin")))
    (project / "weights.bin").write_bytes(b"2")
    assert found.files != user_code.digests("declaring_net:declaring", make("weights.bin")).files
    for absent in ("absent.bin", "."):
        with pytest.raises(errors.InputError, match=r"declares in 'genenc', cannot be read"):
            user_code.digests("declaring_net:declaring", make(absent))


def test_working_directory_cannot_shadow_packages(project: Path) -> None:
    """Modules that are not imported yet, by names of the standard library and of installed packages."""
    write(project, named_net="import this_is_ours, colorsys, wave, zarr.testing\n" + NET, this_is_ours="")
    for name in ("colorsys", "wave", "json", "numpy", "typing_extensions", "torch"):
        (project / f"{name}.py").write_text("open('ran', 'w').close(); 1 / 0\n")
    for name in ("colorsys", "wave"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    before = list(sys.path)
    built = resolve.build_encoder(resolve.ModelRequest(name="named_net:factory", image_size=(32, 32)))
    assert not (project / "ran").exists()
    assert set(built.own.code) == {"named_net.py", "this_is_ours.py"}
    assert sys.path == before


def test_model_without_tensors_has_no_weights_digest(project: Path) -> None:
    write(project, bare_net="from torch import nn\ndef factory():\n    return nn.AvgPool2d(8)\n")
    assert resolve.build_encoder(resolve.ModelRequest(name="bare_net:factory")).weights_sha256 is None


COMPUTED = {
    "importlib": "import importlib\nhelper = importlib.import_module(NAME)\n",
    "from importlib": "from importlib import import_module as load\nhelper = load(NAME)\n",
    "__import__": "helper = __import__(NAME)\n",
    "exec": "exec('import ' + NAME)\n",
    "every module": "import pkgutil\nfor each in pkgutil.iter_modules(__path__, 'lab_c.'): __import__(each.name)\n",
    "in the factory": "import importlib\ndef factory():\n    importlib.import_module(NAME)\n    return net()\n",
    "in forward": "import importlib\ndef factory(): return Lazy(lambda: importlib.import_module(NAME))\n",
    "elsewhere": "import pydoc\ndef factory(): return Lazy(lambda: pydoc.locate(NAME))\n",
}
LAZY = """
from torch import nn
NAME = __name__ + ".helper"
def net(): return nn.Conv2d(3, 4, 8, 8)
class Lazy(nn.Module):
    def __init__(self, load):
        super().__init__()
        self.net, self.load = net(), load
    def forward(self, images):
        self.load()
        return self.net(images)
"""


def built_code(name: str) -> set[str]:
    return set(resolve.build_encoder(resolve.ModelRequest(name=name, image_size=(32, 32))).own.code)


@pytest.mark.slow
@pytest.mark.parametrize("way", COMPUTED)
def test_digests_cover_dynamic_imports(project: Path, way: str) -> None:
    inside = LAZY + ("" if "def factory" in COMPUTED[way] else "factory = net\n") + COMPUTED[way]
    write(project, lab_c__helper="import lab_c.third\n", lab_c__third="value = 1\n")
    (project / "lab_c/__init__.py").write_text(inside)
    wanted = {"lab_c/__init__.py", "lab_c/helper.py", "lab_c/third.py"}
    assert built_code("lab_c:factory") == wanted
    assert built_code("lab_c:factory") == wanted  # again, though nothing is imported any more
    write(project, lab_c__third="value = 22\n")
    with pytest.raises(errors.InputError, match=r"lab_c/third.py changed"):
        built_code("lab_c:factory")


def test_digests_cover_earlier_imports_of_dynamic_code(project: Path) -> None:
    write(project, lab_d__helper="value = 1\n")
    (project / "lab_d/__init__.py").write_text(LAZY + COMPUTED["in the factory"])
    user_code.load_object("lab_d.helper:value")
    assert built_code("lab_d:factory") == {"lab_d/__init__.py", "lab_d/helper.py"}


def test_digests_exclude_unrelated_modules_of_a_script(project: Path) -> None:
    write(project, own_net=NET, analysis="value = 1\n")
    user_code.load_object("analysis:value")
    assert built_code("own_net:factory") == {"own_net.py"}


def test_digests_cover_compiled_code(project: Path) -> None:
    write(project, compiled_net="import compiled_helper\n" + NET, compiled_helper="value = 1\n")
    py_compile.compile(str(project / "compiled_net.py"), cfile=str(project / "compiled_net.pyc"))
    (project / "compiled_net.py").unlink()
    assert built_code("compiled_net:factory") == {"compiled_net.pyc", "compiled_helper.py"}


def test_digest_of_an_archive(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(project / "nets.zip", "w") as archive:
        archive.writestr("zipped_net.py", NET)
    monkeypatch.syspath_prepend(project / "nets.zip")
    try:
        assert built_code("zipped_net:factory") == {"nets.zip"}
    finally:
        sys.modules.pop("zipped_net", None)


def test_code_without_a_file_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("typed_net")
    exec(NET, module.__dict__)
    monkeypatch.setitem(sys.modules, "typed_net", module)
    with pytest.warns(user_code.CodeWithoutFile, match="is not in a file"):
        assert built_code("typed_net:factory") == set()


def test_changes_are_found_without_an_import(project: Path) -> None:
    lab = project / "lab"
    write(lab, net="import layers\n" + NET, layers="X = 1\n", package____init__="", package__net=NET)
    (lab / "data.bin").write_bytes(b"1")
    code = {name: CODE.hex_of_file(lab / name) for name in ("net.py", "layers.py")}
    files = {name: CODE.hex_of_file(lab / "data.bin") for name in ("data.bin", "elsewhere.bin")}
    recorded = user_code.Digests(code=code, files=files)
    assert user_code.changes_since("net:factory", recorded) == ""  # not there
    os.chdir(lab)
    assert user_code.changes_since("net:factory", recorded) == ""
    write(lab, layers="X = 2\n")
    assert user_code.changes_since("net:factory", recorded) == "layers.py changed"
    (lab / "layers.py").unlink()
    (lab / "data.bin").write_bytes(b"2")
    assert user_code.changes_since("net:factory", recorded) == "data.bin changed, layers.py is gone"
    own = user_code.Digests(code={"package/net.py": CODE.hex_of_file(lab / "package" / "net.py")}, files={})
    assert user_code.changes_since("package.net:factory", own) == ""
    write(lab, package__net=NET + "#")
    assert user_code.changes_since("package.net:factory", own) == "package/net.py changed"
    assert not {"net", "layers", "package"} & sys.modules.keys()

"""What an installation from a wheel owns, and what its processes import."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import pictures
from genenc_core.system import code_version

ROOT = Path(__file__).parents[1]
RESNET = ("--model", "resnet18", "--weights", "random:0", "--image-size", "32")


def run(command: Sequence[Path | str], folder: Path, *, home: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder, with nothing of this process's own paths and servers, and its state in `home`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PREFECT_API_URL")}
    state = {"PREFECT_HOME": str(home / "prefect"), "XDG_STATE_HOME": str(home / "state"), **more}
    return subprocess.run(command, cwd=folder, env={**kept, **state}, capture_output=True, text=True, check=False)


def committed(folder: Path) -> str:
    """Make a folder a git repository with one commit of all its files; return the commit."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return said.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without what other builds left."""
    source = tmp_path_factory.mktemp("source") / "genenc"
    for top in ("flows", "tasks", "genenc_core"):
        shutil.copytree(ROOT / top, source / top, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, source)
    committed(source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-P", "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel, and this one's packages but no editable installation."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    inherited = [sysconfig.get_path("purelib"), *filter(lambda path: path.endswith("-packages"), sys.path)]
    (site / "inherited.pth").write_text("\n".join(dict.fromkeys(inherited)) + "\n")
    install = [sys.executable, "-P", "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    subprocess.run([*install, "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, filled_prefect_home: Path) -> Path:
    """A folder for what commands keep."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(filled_prefect_home, folder / "prefect")
    return folder


@pytest.mark.slow
def test_the_wheel_owns_only_names_that_begin_with_genenc(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "genenc",
        "genenc_core",
        "genenc_flows",
        "genenc_tasks",
    }
    for package in ("genenc_core", "genenc_flows", "genenc_tasks"):
        top = ROOT / {"genenc_core": ".", "genenc_flows": "flows", "genenc_tasks": "tasks"}[package]
        files = {str(path.relative_to(top)) for path in (top / package).rglob("*.py")}
        assert files == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_deployments_are_registered_from_the_wheel_in_an_empty_folder(
    wheel: Path, installed: Path, home: Path, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    with zipfile.ZipFile(wheel) as archive:
        assert "genenc_flows/prefect.yaml" in archive.namelist()
    server = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    done = run([installed / "genenc", "deploy", "--pool", "wheel"], tmp_path, home=home, **server)
    assert done.returncode == 0, done.stderr
    assert "deployment update_dataset/nightly: " in done.stdout
    assert list(tmp_path.iterdir()) == []
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name("update_dataset/nightly")
    assert (found.entrypoint, found.work_pool_name) == ("genenc_flows.dataset.update_dataset", "wheel")


def test_the_version_names_the_commit_that_the_wheel_was_built_from(
    source: Path, installed: Path, home: Path, tmp_path: Path
) -> None:
    """Whatever repository the working directory or the installation lies in."""
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    (tmp_path / "theirs.txt").write_text("theirs")
    ours = code_version.describe(source / "genenc_core")["git_commit"]
    assert ours not in (committed(tmp_path), committed(site))
    done = run([installed / "genenc", "--version"], tmp_path, home=home, GIT_DIR=str(tmp_path / ".git"))
    assert done.stdout == f"{importlib.metadata.version('genenc')} ({str(ours)[:12]})\n", done.stderr


@pytest.mark.slow
def test_an_sdist_keeps_the_commit_for_its_wheel(source: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]), file=sys.stderr)"
    subprocess.run([sys.executable, "-P", "-c", code, tmp_path], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as found:
        found.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("genenc-*/genenc_core")
    assert not (source / "genenc_core" / code_version.RECORD).exists()
    built = code_version.describe(source / "genenc_core")
    assert built == code_version.describe(unpacked) != {}


OWN = """
import importlib, pathlib, sys
from flows import nightly
from genenc_flows import extraction
print("plain", nightly.naming.__file__)
for name in [name for name in sys.modules if name.partition(".")[0] in ("flows", "tasks")]:
    del sys.modules[name]
for folder in ("flows", "tasks"):
    pathlib.Path(folder, "__init__.py").touch()
importlib.invalidate_caches()
from flows.nightly import naming, nightly
print("packages", naming.__file__)
print("stored", nightly())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_project_with_flows_and_tasks_of_its_own(installed: Path, home: Path, tmp_path: Path) -> None:
    """Its own flow runs, which calls ours as a subflow; its modules are found without `__init__.py`, too."""
    from prefect.settings import PREFECT_API_URL

    server = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    for name, text in {
        "flows/nightly.py": (
            "from prefect import flow\n"
            "from genenc_core.run import parameters\n"
            "from genenc_flows import extraction\n"
            "from tasks import naming\n\n"
            "@flow\n"
            "def nightly():\n"
            "    given = parameters.ExtractParameters(\n"
            "        images='photos', model='resnet18', weights='random:0', image_size='32', out=naming.out_folder()\n"
            "    )\n"
            "    return extraction.extract_features(given).status.ok\n"
        ),
        "tasks/naming.py": "def out_folder():\n    return 'own'\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    pictures.write_folder(tmp_path / "photos", 3)
    done = run([installed / "python", "-c", OWN], tmp_path, home=home, **server)
    for folder in ("plain", "packages"):
        assert f"{folder} {tmp_path / 'tasks' / 'naming.py'}\n" in done.stdout, done.stderr
    assert "stored 3" in done.stdout, done.stderr


def names_of_modules() -> list[str]:
    """Every top-level name that a Python process here could import."""
    folders = [Path(folder) for folder in sys.path if Path(folder).is_dir()]
    found = {path.name.partition(".")[0] for folder in folders for path in folder.iterdir()}
    more = {"flows", "tasks", "genenc_flows", "genenc_tasks", "sitecustomize", "usercustomize"}
    return sorted(name for name in found | more | set(sys.stdlib_module_names) if name.isidentifier())


@pytest.mark.slow
def test_no_code_of_the_working_directory_runs(installed: Path, home: Path, tmp_path: Path) -> None:
    """Neither modules nor Prefect's settings, with its server, and with an artifact, which is tried in a child."""
    photos = pictures.write_folder(tmp_path / "photos", 3)
    ran = tmp_path / "ran"
    for name in names_of_modules():
        (photos / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r} + ' ')\nraise SystemExit(3)\n")
    logging = {"version": 1, "handlers": {"x": {"()": "subprocess.getoutput", "cmd": f"echo logging >> {ran}"}}}
    (photos / "logging.yml").write_text(json.dumps({**logging, "root": {"handlers": ["x"]}}))
    (photos / "prefect.toml").write_text('[logging]\nconfig_path = "logging.yml"\n')
    (photos / "pyproject.toml").write_text('[tool.prefect.logging]\nconfig_path = "logging.yml"\n')
    (photos / ".env").write_text("PREFECT_LOGGING_SETTINGS_PATH=logging.yml\n")
    artifact = ("--model", "general_encoder", "--weights", "../model/resnet18_torchscript.pt", "--trust")
    for command in (
        ["extract", ".", *RESNET, "--out", "../run"],
        ["export", "resnet18", *RESNET[2:], "--out", "../model", "--formats", "torchscript", "--plain"],
        ["extract", ".", *artifact, "--image-size", "32", "--out", "../general", "--plain"],
    ):
        done = run([installed / "genenc", *command], photos, home=home)
        assert not ran.exists(), (command[0], ran.read_text())
        assert done.returncode == 0, done.stderr

"""The project's own promises: every package is shipped, and the README's commands are the ones that CI runs."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

import pictures

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        ".".join(path.parent.relative_to(ROOT / top).parts)
        for top in (".", "flows", "tasks")
        for package in (ROOT / top).glob("genenc_*")
        for path in package.rglob("__init__.py")
    ]
    assert sorted(found) == sorted(listed)


def test_ci_takes_its_commands_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, ending in (("demo", "genenc demo"), ("tests", "pytest -n 2")):
        blocks = re.findall(rf"<!-- ci: {name} -->\n```sh\n(.*?)\n```", readme, flags=re.S)
        assert len(blocks) == 1
        assert blocks[0].endswith(ending)
    script = (ROOT / ".ci" / "run").read_text()
    assert "readme_command demo" in script
    assert "readme_command tests" in script


def test_the_figures_shown_are_those_of_the_committed_results() -> None:
    """`python tests/benchmarks/readme.py` writes them."""
    folder = ROOT / "tests" / "benchmarks"
    writer = runpy.run_path(str(folder / "readme.py"))
    found = writer["reports"]()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert found
    assert found[0].command in readme
    assert writer["in_brief"](readme, found) == readme
    assert writer["in_full"](found) == (folder / "RESULTS.md").read_text(encoding="utf-8")


def test_the_readmes_python_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The five lines that drive the core, then those that open what they made, those for S3 with a local run."""
    pictures.write_folder(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)\n```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 3
    found: dict[str, Any] = {}
    for block in sorted(blocks, key=lambda text: "driver" not in text):
        exec(block.replace("s3://bucket/prefix", "run"), found)
    assert found["result"].status.ok == 3
    run = found["run"]
    assert dict(run.features.sizes) == {"image": 3, "features_channel": 512}
    assert set(run.features.coords) >= {"image_id", "path", "image_height", "image_width"}
    assert list(run.image_id.values) == ["img_000.png", "img_001.png", "img_002.png"]
    assert list(run.image_height.values) == [60, 60, 60]

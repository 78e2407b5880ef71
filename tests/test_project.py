"""The project's own promises: every package is shipped, and the README's commands are the ones that CI runs."""

import re
import runpy
import tomllib
from pathlib import Path

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
    assert found
    for path, write in ((ROOT / "README.md", "in_readme"), (folder / "RESULTS.md", "in_results")):
        page = path.read_text(encoding="utf-8")
        assert writer[write](page, found) == page
    assert found[0].command in page

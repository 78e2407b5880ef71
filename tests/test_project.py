"""The project's own promises: every package is shipped, and the README's commands are the ones that CI runs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("flows", "genenc_core", "tasks")
        for path in (ROOT / top).rglob("__init__.py")
    ]
    assert sorted(found) == sorted(listed)


def test_ci_takes_its_commands_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, ending in (("demo", "genenc demo"), ("tests", "pytest")):
        blocks = re.findall(rf"<!-- ci: {name} -->\n```sh\n(.*?)\n```", readme, flags=re.S)
        assert len(blocks) == 1
        assert blocks[0].endswith(ending)
    script = (ROOT / ".ci" / "run").read_text()
    assert "readme_command demo" in script
    assert "readme_command tests" in script


def test_modules_stay_readable() -> None:
    """Library modules have a docstring and at most 300 lines."""
    for top in ("flows", "genenc_core", "tasks"):
        for path in (ROOT / top).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert text.startswith('"""'), path
            assert text.count("\n") <= 300, path

"""Setuptools build commands that record the commit in wheels and sdists; referenced from pyproject.toml."""

import json
import runpy
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# Loaded by path: genenc cannot be imported while it is being built.
_VERSION = runpy.run_path(str(Path(__file__).with_name("code_version.py")))
# Determined before the build writes into the checkout and so marks it as modified.
_COMMIT = _VERSION["describe"](Path("genenc_core").resolve())


class BuildPy(build_py):  # type: ignore[misc]
    """Also writes the commit record, except for editable installs, which ask their checkout."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            record(Path(self.build_lib) / "genenc_core")


class Sdist(sdist):  # type: ignore[misc]
    """Also writes the commit record, for wheels built from the sdist without a repository."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files."""
        super().make_release_tree(base_dir, files)
        record(Path(base_dir) / "genenc_core")


def record(target: Path) -> None:
    """Write the commit record into a copy of the package; no file if the commit is unknown."""
    file = target / _VERSION["RECORD"]
    file.unlink(missing_ok=True)  # from an earlier build, or a link to the source's own
    if _COMMIT:
        file.write_text(json.dumps(_COMMIT) + "\n", encoding="utf-8")

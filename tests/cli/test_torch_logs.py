"""What torch logs and prints of its own accord while it exports, compiles and loads stays off the screen."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forked
import pictures
import tiny_models


def genenc(*arguments: str, run: Callable[..., Any] = forked.run) -> "subprocess.CompletedProcess[str]":
    code = "from genenc_core.cli import app; app.run()"
    folders = (str(Path(tiny_models.__file__).parent), str(Path(__file__).parents[2]))
    return run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "aotinductor"])
def test_an_export_that_fails_says_one_line(kind: str, tmp_path: Path) -> None:
    out = str(tmp_path / "m")
    done = genenc("export", "tiny_models:branching", "--weights", "random:0", "--image-size", "32", "--formats", kind,
                  "--out", out, "--json")  # fmt: skip
    assert done.returncode == 1
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error"]
    assert "torch.export cannot export this model" in json.loads(done.stdout)["error"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "exported_program", "onnx"])
def test_export_and_run_are_quiet(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "m"
    done = genenc("export", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--formats", kind,
                  "--out", str(out), "--json")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    # One of them imports torch itself, which is to be quiet, too.
    own = subprocess.run if kind == "exported_program" else forked.run
    (spec,) = [item["spec"] for item in json.loads(done.stdout)]
    images = pictures.write_folder(tmp_path / "photos", 3)
    done = genenc("extract", str(images), "--model", spec, "--out", str(tmp_path / "run"), "--json", run=own)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["complete"]

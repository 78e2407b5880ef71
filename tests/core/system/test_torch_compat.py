"""What harm a version of torch could do, and does not."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genenc_core.system import torch_compat

MENDED = not torch.__version__.startswith("2.11.") or torch.cuda.is_available()
IN_THREADS_THAT_END = """
import sys, threading
{entry}
found = []
for _ in range(20):
    thread = threading.Thread(target=lambda: found.append(enter()))
    thread.start()
    thread.join()
assert found == [(2, 4, 7, 7)] * 20, found
"""
ENTRIES = {
    "observe": """
import torch
from genenc_core.models import fake_run as probing

def enter():
    return probing.observe(torch.nn.Conv2d(3, 4, 3), lambda module, images: module(images).shape, batch=2, size=(9, 9))
""",
    "measure": """
from genenc_core.models import shapes

def enter():
    (slot,) = shapes.measure("resnet18", image_size=(224, 224)).outputs
    return (2, slot.shape[0] // 128, *slot.shape[1:])
""",
    "load": """
import sys, torch
from pathlib import Path
from genenc_core.runtime.formats import exported_program

def enter():
    (found,) = exported_program.load(Path(sys.argv[1]), torch.device("cpu"), None).run(torch.zeros(2, 3, 9, 9))
    return found.shape
""",
    "export": """
import torch
from genenc_core.runtime.formats import interface as record

def enter():
    target = record.Target(example=torch.zeros(2, 3, 9, 9), batch=(2, 2), sizes=None, outputs=("map",))
    return target.program(torch.nn.Conv2d(3, 4, 3)).module()(torch.zeros(2, 3, 9, 9)).shape
""",
    "compile": """
import torch
from genenc_core.runtime import eager, execution

def enter():
    run = eager.runner(torch.nn.Conv2d(3, 4, 3), torch.device("cpu"), execution.Execution(compile=True))
    (found,) = run(torch.zeros(2, 3, 9, 9))
    return found.shape
""",
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_to_tensors_without_numbers_begins_there(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    class Asked(Exception):
        pass

    def ask() -> None:
        raise Asked

    monkeypatch.setattr(torch_compat, "prepare_fake_tensors", ask)
    monkeypatch.setattr(sys, "argv", ["", "not read"])
    space: dict[str, Any] = {}
    exec(ENTRIES[entry], space)
    with pytest.raises(Asked):
        space["enter"]()


@pytest.mark.skipif(MENDED, reason="a fault of torch 2.11 without CUDA devices")
@pytest.mark.parametrize("entry", ENTRIES)
def test_models_are_looked_at_in_threads_that_end(tmp_path: Path, entry: str) -> None:
    """A segmentation fault in the second thread or soon after."""
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(2, 3, 9, 9),))
    torch.export.save(program, tmp_path / "conv.pt2")
    code = IN_THREADS_THAT_END.format(entry=ENTRIES[entry])
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "conv.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def first() -> Iterator[None]:
    """Let what happens once happen, and again for what comes later: under another version of torch."""
    torch_compat.prepare_fake_tensors.cache_clear()
    yield
    torch_compat.prepare_fake_tensors.cache_clear()


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(("version", "threads"), [("2.11.0+cu130", 1), ("2.12.0", 0), ("2.14.1+cu130", 0), ("3.0", 0)])
def test_only_faulty_versions_have_a_thread(monkeypatch: pytest.MonkeyPatch, version: str, threads: int) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    before = _waiting()
    for _ in range(3):
        torch_compat.prepare_fake_tensors()
    assert len(_waiting() - before) == threads


def _waiting() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "genenc-fake-device"}

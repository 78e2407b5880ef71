"""What harm a version of torch could do, and does not."""

import subprocess
import sys
import threading

import pytest
import torch

from genenc_core import torch_faults

BUILT_IN_THREADS_THAT_END = """
import threading
import torch
from genenc_core.models import probing

def shape():
    return probing.observe(torch.nn.Conv2d(3, 4, 3), lambda module, images: module(images).shape, batch=2, size=(9, 9))

shapes = []
for _ in range(50):
    thread = threading.Thread(target=lambda: shapes.append(shape()))
    thread.start()
    thread.join()
assert shapes == [(2, 4, 7, 7)] * 50
"""


def test_models_are_observed_in_threads_that_end() -> None:
    """Torch 2.11 without CUDA devices: a segmentation fault in the second thread or soon after."""
    done = subprocess.run(
        [sys.executable, "-c", BUILT_IN_THREADS_THAT_END], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("version", "threads"), [("2.11.0+cu130", 1), ("2.12.0", 0), ("2.14.1+cu130", 0), ("3.0.0", 0)]
)
def test_only_the_version_with_the_fault_has_a_thread_for_it(
    monkeypatch: pytest.MonkeyPatch, version: str, threads: int
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    before = _waiting()
    torch_faults.before_fake_tensors.cache_clear()
    for _ in range(3):
        torch_faults.before_fake_tensors()
    assert len(_waiting() - before) == threads


def _waiting() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "genenc-fake-device"}

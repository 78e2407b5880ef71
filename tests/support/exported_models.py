"""A tiny model, built and exported to each format once per session: compiling takes 10 to 30 seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import session_files

if TYPE_CHECKING:  # torch is not for pytest-xdist's own process, which every other waits for
    from genenc_core.export import exporter
    from genenc_core.models import resolve

TINY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.same = nn.Conv2d(8, 8, 3, padding=1)
        self.fine = nn.Conv2d(3, 4, 4, 4)
    def forward(self, images):
        return {"deep": torch.relu(self.same(self.conv(images - 0.5))), "fine": self.fine(images).flip(3)}

class BatchDependent(nn.Module):
    def forward(self, images):
        return images[:, :, ::8, ::8] * (2.0 if images.shape[0] > 3 else 1.0)

class NotANumber(nn.Module):
    def forward(self, images):
        return images / 0.0 - images / 0.0

class Crashing(nn.Module):
    def forward(self, images):
        if torch.jit.is_tracing():
            raise KeyError("no tracing here")
        return images
"""
MODULE = "my_models_for_export"
FORMATS: list[exporter.Format] = ["torchscript", "aotinductor", "exported_program", "onnx"]


@pytest.fixture(scope="session")
def models_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an importable module with small model classes."""
    folder = tmp_path_factory.mktemp("models")
    (folder / f"{MODULE}.py").write_text(TINY)
    sys.path.insert(0, str(folder))
    yield MODULE
    sys.path.remove(str(folder))
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="session")
def tiny_encoder(models_module: str) -> resolve.BuiltEncoder:
    """A built encoder [3, 32, 40] -> deep [8, 4, 5], fine [4, 8, 10]."""
    from genenc_core.models import resolve

    name = f"{models_module}:Tiny"
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:1", image_size=(32, 40)))


@pytest.fixture(scope="session")
def tiny(tiny_encoder: resolve.BuiltEncoder) -> resolve.BuiltEncoder:
    """The same; folders of tests may have another fixture of this name."""
    return tiny_encoder


@pytest.fixture(scope="session")
def exported(tiny_encoder: resolve.BuiltEncoder, request: pytest.FixtureRequest) -> dict[str, exporter.ExportedModel]:
    """The tiny model in every format, batches 1 to 20, by format. Read only: copy before changing."""
    from genenc_core.export import exporter

    def make(out: Path) -> list[exporter.ExportedModel]:
        return exporter.export_encoder(tiny_encoder, out=out, formats=FORMATS, batch_max=20, name="tiny")

    return dict(zip(FORMATS, session_files.made_once(request.config, "exported", make), strict=True))

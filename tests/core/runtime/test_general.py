"""The general encoder: any exported file without a spec; what it takes and gives is found, never believed."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny_models
from genenc_core import errors, spec
from genenc_core.export import exporter
from genenc_core.models import resolve
from genenc_core.runtime import artifact_trial, backends, general_encoder
from genenc_core.runtime.formats import interface


def traced(module: nn.Module, path: Path, *, batch: int = 2, size: tuple[int, int] = (32, 48)) -> Path:
    torch.jit.trace(module.eval(), torch.rand(batch, 3, *size)).save(path)
    return path


@pytest.fixture
def conv(tmp_path: Path) -> Path:
    """A TorchScript file of a fully convolutional net, [B, 3, H, W] -> [B, 6, H/8, W/8]."""
    torch.manual_seed(0)
    return traced(tiny_models.conv(), tmp_path / "conv.pt")


@pytest.mark.slow
@pytest.mark.own_process
def test_trial_determines_outputs_and_batches(conv: Path) -> None:
    found = general_encoder.spec_of(conv, image_size=(32, 48), trust=True)
    assert (found.model_id, found.display_name) == ("general_encoder", "General Encoder")
    assert [(slot.name, slot.shape) for slot in found.inputs] == [("image", (3, 32, 48))]
    assert [(slot.name, slot.shape) for slot in found.outputs] == [("features", (6, 4, 6))]
    assert found.inputs[0].recommended_encoder == "ImageEncoder"
    assert found.outputs[0].recommended_decoder == "TensorToFeatureVector"
    assert found.recommended_post_encoder == "global_avg_pool"
    assert found.resolved_batch_mode().describe() == "Dynamic(1, unlimited)"
    found.check()
    encoder = backends.load_encoder(found, trust=True)
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = torch.jit.load(conv)(images)
    assert torch.equal(encoder(images)["features"], expected)
    assert encoder.preprocessing.describe() == "stretch to 32 x 48, bilinear, not antialiased"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exported_program", "onnx"])
def test_bounds_of_other_formats_are_found(kind: spec.ExportFormat, tmp_path: Path) -> None:
    """An ONNX file runs no code, so it needs no trust."""
    request = resolve.ModelRequest(name="tiny_models:conv", weights="random:0", image_size=(32, 48))
    built = resolve.build_encoder(request)
    (made,) = exporter.export_encoder(built, out=tmp_path, formats=[kind], batch_max=4)
    found = general_encoder.spec_of(made.artifact_path, image_size=(32, 48), trust=kind != "onnx")
    assert [slot.shape for slot in found.outputs] == [(6, 4, 6)]
    assert found.resolved_batch_mode().min == 1
    if kind == "exported_program":
        assert found.resolved_batch_mode().max == 4
        with pytest.raises(errors.InputError, match="of 32 x 48 pixels, not of 32 x 32"):
            general_encoder.spec_of(made.artifact_path, image_size=(32, 32), trust=True)
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    encoder = backends.load_encoder(found, trust=True)
    torch.testing.assert_close(encoder(images)["features"], built.module(images)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.own_process
def test_file_that_crashes_its_process_is_refused(conv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = [sys.executable, "-c", "import os; os.abort()"]
    monkeypatch.setattr(artifact_trial.processes, "command", lambda *_arguments: dying)
    with pytest.raises(errors.InputError, match=r"conv.*crashed its trial process \(exit code -6\)"):
        general_encoder.spec_of(conv, trust=True)


def test_default_size_is_224(conv: Path) -> None:
    assert general_encoder.spec_of(conv, trust=True).inputs[0].shape == (3, 224, 224)


def test_file_that_runs_code_needs_trust(conv: Path) -> None:
    with pytest.raises(errors.InputError, match="add --trust"):
        general_encoder.spec_of(conv)


def test_declared_output_shape_is_compared(conv: Path) -> None:
    assert general_encoder.spec_of(conv, image_size=(32, 32), output_shape="6, 4, 4", trust=True).outputs[0].shape == (
        6,
        4,
        4,
    )
    with pytest.raises(errors.InputError, match=r"'384,7,7' differs from .* first output is 6,28,28"):
        general_encoder.spec_of(conv, output_shape="384,7,7", trust=True)


@pytest.mark.parametrize("text", ["768,abc,16", "12abc", "768,,7", "", "0,7,7", "-1", "7.5", "768x7x7", "٣,7,7"])
def test_invalid_output_shape_is_refused(text: str, conv: Path) -> None:
    with pytest.raises(errors.InputError, match=r"is invalid: .* is not an integer"):
        general_encoder.spec_of(conv, output_shape=text, trust=True)


def test_output_shape_is_parsed() -> None:
    assert general_encoder.parse_shape("768, 7,7") == (768, 7, 7)


class OneImage(nn.Module):
    """A net with its batch of one baked in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_models.conv()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images).reshape(1, 6, -1)


class Mixing(nn.Module):
    """A net whose vector of every image holds something of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_models.conv()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.inner(images)
        return maps, maps.mean((2, 3)) + maps[:1].mean((2, 3))


def test_file_for_one_image_has_fixed_batch(tmp_path: Path) -> None:
    found = general_encoder.spec_of(traced(OneImage(), tmp_path / "one.pt", batch=1), image_size=(32, 48), trust=True)
    assert found.resolved_batch_mode().describe() == "Fixed(1)"
    # It gives channels and places, [1, 6, 24]; a list of tokens is the other way round.
    assert found.outputs[0].shape == (24, 6)


def test_file_that_mixes_images_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        errors.InputError, match=r"different features for an image beside other images.*evaluation mode"
    ):
        general_encoder.spec_of(traced(Mixing(), tmp_path / "mix.pt"), image_size=(32, 48), trust=True)


def test_package_bounds_and_size_are_found(exported: dict[str, exporter.ExportedModel]) -> None:
    path = exported["aotinductor"].artifact_path
    found = general_encoder.spec_of(path, image_size=(32, 40), trust=True)
    assert found.resolved_batch_mode().describe() == "Dynamic(1, 16)"
    assert [(slot.name, slot.shape) for slot in found.outputs] == [
        ("features_0", (8, 4, 5)),
        ("features_1", (4, 8, 10)),
    ]
    with pytest.raises(errors.InputError, match=r"does not accept a batch of images of 40 x 32 pixels.*--image-size"):
        general_encoder.spec_of(path, image_size=(40, 32), trust=True)


def only(*batches: int) -> interface.Runner:
    """Return a runner that takes these batches, as a package with bounds does."""

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        if len(images) not in batches:
            raise RuntimeError(f"batch {len(images)}")
        return (images.mean((2, 3)),)

    return run


@pytest.mark.parametrize(
    ("batches", "least", "most"),
    [
        ((3,), 3, 3),
        (range(2, 6), 2, 5),
        (range(1, 21), 1, 16),
        (range(1, 1000), 1, 32),
        ((1,), 1, 1),
        ((16, 17), 16, 17),
    ],
)
def test_batch_bounds_are_found(batches: Sequence[int], least: int, most: int) -> None:
    found = artifact_trial.find(only(*batches), name="x", size=(8, 8), bounded=True)
    assert (found.batch_min, found.batch_max, found.outputs) == (least, most, ((3,),))


def test_file_that_always_mixes_images_is_refused() -> None:
    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        if len(images) == 1:
            raise RuntimeError("two or more")
        return (images.mean((2, 3)) * torch.arange(len(images))[:, None],)

    with pytest.raises(errors.InputError, match="different features for an image beside other images"):
        artifact_trial.find(run, name="x", size=(8, 8), bounded=False)


def test_other_files_are_refused_by_kind(tmp_path: Path, conv: Path) -> None:
    torch.save(tiny_models.conv().state_dict(), tmp_path / "state.pth")
    (tmp_path / "text.pt").write_text("no archive")
    for name, words in (
        ("state.pth", "is a state dict file.*--model NAME --weights FILE"),
        ("text.pt", "is not an exported model"),
        ("nothing.pt", "there is no file"),
    ):
        with pytest.raises(errors.InputError, match=words):
            general_encoder.spec_of(tmp_path / name, trust=True)


def test_damaged_file_is_refused(tmp_path: Path, conv: Path) -> None:
    data = bytearray(conv.read_bytes())
    at = data.index(b"code/")
    data[at - 200 : at] = bytes(200)
    (tmp_path / "damaged.pt").write_bytes(data)
    with pytest.raises(errors.InputError):
        general_encoder.spec_of(tmp_path / "damaged.pt", trust=True)


class Whole(nn.Module):
    """A net that gives whole numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.long()


def test_a_file_without_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="returns no features: output 0"):
        general_encoder.spec_of(traced(Whole(), tmp_path / "whole.pt"), image_size=(32, 48), trust=True)

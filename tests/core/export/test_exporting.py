"""Exporting: what is written, that it is compared with the model, and that a failure leaves nothing behind."""

import sys
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config

import forked
from genenc_core import errors, spec
from genenc_core.export import comparison, exporter
from genenc_core.models import resolve
from genenc_core.system import digests

BOTH = ["torchscript", "aotinductor"]
NAMES = {
    "torchscript": "TorchScript",
    "aotinductor": "AOTInductor",
    "exported_program": "ExportedProgram",
    "onnx": "ONNX",
}


def build(models_module: str, name: str) -> resolve.BuiltEncoder:
    return resolve.build_encoder(
        resolve.ModelRequest(name=f"{models_module}:{name}", weights="random:0", image_size=(16, 16))
    )


def test_each_format_is_one_artifact_and_one_spec(exported: dict[str, exporter.ExportedModel]) -> None:
    folder = exported["torchscript"].spec_path.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "tiny_aotinductor.pt2",
        "tiny_aotinductor_spec.json",
        "tiny_exported_program.pt2",
        "tiny_exported_program_spec.json",
        "tiny_onnx.onnx",
        "tiny_onnx_spec.json",
        "tiny_torchscript.pt",
        "tiny_torchscript_spec.json",
    ]
    for model in exported.values():
        assert spec.load_spec(model.spec_path) == model.spec


@pytest.mark.parametrize("kind", NAMES)
def test_exported_spec_is_complete(
    exported: dict[str, exporter.ExportedModel], tiny: resolve.BuiltEncoder, kind: str
) -> None:
    raw = spec.RuntimeModelSpec.from_json(exported[kind].spec_path.read_text())
    assert raw.model_id == f"tiny_{kind}"
    assert raw.weights_path == exported[kind].artifact_path.name
    assert raw.resolved_backend() == NAMES[kind]
    assert raw.resolved_batch_mode().describe() == "Dynamic(1, 20)"
    assert [(slot.name, slot.shape, slot.recommended_encoder) for slot in raw.inputs] == [
        ("image", (3, 32, 40), "ImageEncoder")
    ]
    assert [(slot.name, slot.shape, slot.recommended_decoder) for slot in raw.outputs] == [
        ("deep", (8, 4, 5), "TensorToFeatureVector"),
        ("fine", (4, 8, 10), "TensorToFeatureVector"),
    ]
    assert raw.recommended_post_encoder == "global_avg_pool"
    block = raw.genenc
    assert block is not None
    assert block.artifact is not None
    assert (block.weights_sha256, block.preprocessing) == (tiny.weights_sha256, tiny.preprocessing)
    assert block.source == spec.SourceInfo(kind="python", name=tiny.request.name, weights="random:1")
    assert block.artifact.sha256 == digests.ARTIFACT.hex_of_file(exported[kind].artifact_path)
    assert block.artifact.bytes == exported[kind].artifact_path.stat().st_size
    assert block.artifact.batches_compared == (1, 3, 20)
    assert block.artifact.max_rel_error <= block.artifact.tolerance == 1e-5
    assert block.artifact.platform["torch"] == torch.__version__


def test_the_package_names_its_device_and_instructions(exported: dict[str, exporter.ExportedModel]) -> None:
    block = exported["aotinductor"].spec.genenc
    assert block is not None
    assert block.artifact is not None
    assert block.artifact.platform["device"] == "cpu"
    assert block.artifact.platform.keys() >= {"isa", "machine", "system"}


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((1, 32), (1, 3, 32)), ((2, 32), (2, 3, 32)), ((4, 8), (4, 5, 8)), ((5, 9), (5, 7, 9)), ((1, 2), (1, 2))],
)
def test_smallest_odd_and_largest_batch_are_compared(bounds: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert comparison.batches(*bounds) == expected


def test_differing_artifact_is_refused_without_leftovers(models_module: str, tmp_path: Path) -> None:
    """A trace made with two images freezes the branch for small batches."""
    built = build(models_module, "BatchDependent")
    with pytest.raises(errors.ExportError, match=r"differs from its model: relative error 0\.5"):
        exporter.export_encoder(built, out=tmp_path, formats=["torchscript"])
    assert list(tmp_path.iterdir()) == []
    (accepted,) = exporter.export_encoder(built, out=tmp_path, formats=["torchscript"], batch_max=3)
    assert accepted.spec.genenc.artifact.max_rel_error == 0


@pytest.mark.parametrize(("name", "words"), [("NotANumber", "NaN or infinite"), ("Crashing", "no tracing here")])
def test_unexportable_model_is_refused(models_module: str, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(errors.ExportError, match=words):
        exporter.export_encoder(build(models_module, name), out=tmp_path, formats=["torchscript"])
    assert list(tmp_path.iterdir()) == []


def test_eager_answers_are_shared(tiny: resolve.BuiltEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inputs at each of the batches 1, 3 and 4, whatever the number of formats; one batch is held at a time."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most: list[int] = []
    original = comparison.draw

    def counted(shape: comparison.Shape, *, channels: int) -> Iterator[torch.Tensor]:
        for images in original(shape, channels=channels):
            alive.append(weakref.ref(images))
            yield images
            del images
            most.append(sum(item() is not None for item in alive))

    calls: list[int] = []
    hook = tiny.module.register_forward_hook(lambda _module, given, _out: calls.append(len(given[0])))
    monkeypatch.setattr(comparison, "draw", counted)

    def expected(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tiny.module.forward(images)

    candidates = [
        comparison.Candidate(name=name, run=expected, shapes=((1, 32, 40), (3, 32, 40), (4, 32, 40)))
        for name in ("one", "two")
    ]
    try:
        found = comparison.compare(tiny, candidates, tolerance=0.0)
    finally:
        hook.remove()
    assert calls == [1, 1, 3, 3, 4, 4]
    assert max(most) <= 1
    assert found == {name: comparison.Difference(absolute=0.0, relative=0.0) for name in ("one", "two")}


def test_model_that_writes_to_its_input_is_compared(tiny: resolve.BuiltEncoder) -> None:
    def halved(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tiny.module.forward(images.mul_(0.5))

    def halve(_module: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        given[0].mul_(0.5)

    candidates = [comparison.Candidate(name=name, run=halved, shapes=((1, 32, 40),)) for name in ("one", "two")]
    hook = tiny.module.register_forward_pre_hook(halve)
    try:
        found = comparison.compare(tiny, candidates, tolerance=0.0)
    finally:
        hook.remove()
    assert {difference.absolute for difference in found.values()} == {0.0}


def test_equal_bounds_give_a_fixed_batch(tiny: resolve.BuiltEncoder, tmp_path: Path) -> None:
    (model,) = exporter.export_encoder(tiny, out=tmp_path, formats=["torchscript"], batch_min=4, batch_max=4)
    assert model.spec.resolved_batch_mode().describe() == "Fixed(4)"
    assert model.artifact_path.name == "my_models_for_export_Tiny_torchscript.pt"


def test_torchscript_export_emits_no_warning(tiny: resolve.BuiltEncoder, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exporter.export_encoder(tiny, out=tmp_path, formats=["torchscript"])


def test_exporting_again_replaces_the_files(tiny: resolve.BuiltEncoder, tmp_path: Path) -> None:
    for _ in range(2):
        exporter.export_encoder(tiny, out=tmp_path / "new" / "folder", formats=["torchscript"], name="again")
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["again_torchscript.pt", "again_torchscript_spec.json"]


def test_unwritable_folder_first(tiny: resolve.BuiltEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(comparison, "draw", lambda *_, **__: pytest.fail("worked before looking at --out"))
    with pytest.raises(errors.InputError, match="is not writable"):
        exporter.export_encoder(tiny, out=tmp_path / "file" / "out", formats=["torchscript"])


def test_missing_compiler_error_gives_a_remedy(tiny: resolve.BuiltEncoder, tmp_path: Path) -> None:
    # torch's own patch: its configuration hides an option for good when monkeypatch takes a change back.
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}),
        pytest.raises(errors.ExportError, match=r"apt install g\+\+.*--formats torchscript"),
    ):
        exporter.export_encoder(tiny, out=tmp_path / "out", formats=BOTH)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": []}, "formats"),
        ({"formats": ["tensorrt"]}, "torchscript, aotinductor, exported_program, onnx"),
        ({"formats": ["torchscript", "torchscript"]}, "formats"),
        ({"formats": ["torchscript"], "batch_min": 0}, "batch bounds"),
        ({"formats": ["torchscript"], "batch_min": 5, "batch_max": 4}, "batch bounds"),
        ({"formats": ["torchscript"], "name": "a/b"}, "plain file name"),
        ({"formats": ["torchscript"], "name": ""}, "plain file name"),
    ],
)
def test_impossible_requests_are_refused(
    tiny: resolve.BuiltEncoder, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(errors.InputError, match=words):
        exporter.export_encoder(tiny, out=tmp_path, **options)


@pytest.mark.slow
def test_export_package_does_not_import_the_compiler() -> None:
    code = (
        "import sys\nfrom genenc_core.export import exporter as exporting; from genenc_core.runtime import backends\n"
        "print('torch._inductor.codecache' in sys.modules)"
    )
    done = forked.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

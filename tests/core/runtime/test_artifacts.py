"""What files are, told from their content; what they need, told before they run; and what an export costs."""

import json
import mmap
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from genenc_core import errors, spec
from genenc_core.export import comparison, exporter
from genenc_core.models import resolve
from genenc_core.runtime import artifact_kinds, backends, onnx_file
from genenc_core.runtime.formats import onnx as onnx_format
from genenc_core.runtime.formats import table
from genenc_core.system import digests

Exported = dict[str, exporter.ExportedModel]
# The first bytes of a .pte that ExecuTorch 1.5.1 wrote; byte 4 on is its flatbuffer identifier.
EXECUTORCH = b"<\x00\x00\x00ET12eh00 \x00\x00\x00" + bytes(64)


def forged(model: exporter.ExportedModel, path: Path, **facts: str) -> spec.RuntimeModelSpec:
    """The spec of `model` with another file, its digest, and other facts of its platform."""
    info = model.spec.genenc.artifact
    changed = {"sha256": digests.ARTIFACT.hex_of_file(path), "platform": {**info.platform, **facts}}
    block = model.spec.genenc.model_copy(update={"artifact": info.model_copy(update=changed)})
    return model.spec.model_copy(update={"weights_path": str(path), "genenc": block})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torchscript", "TorchScript"),
        ("aotinductor", "AOTInductor"),
        ("exported_program", "exported program"),
        ("onnx", "ONNX"),
    ],
)
def test_kind_is_told_from_content(exported: Exported, tmp_path: Path, kind: str, expected: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(exported[kind].artifact_path.read_bytes())
    assert artifact_kinds.artifact_kind(path) == expected
    assert table.format_of(None, path) == kind


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"<html>", b"ET12", b"\x08\x0a", EXECUTORCH[:4] + b"EXEC", b"\xff" * 40, bytes(40)]
)
def test_other_files_have_no_artifact_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert artifact_kinds.artifact_kind(path) is None
    assert artifact_kinds.artifact_kind(tmp_path / "absent") is None


def test_executorch_is_refused(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(EXECUTORCH)
    assert artifact_kinds.artifact_kind(path) == "ExecuTorch"
    given = exported["torchscript"].spec
    by_content = given.model_copy(update={"weights_path": str(path), "backend": None})
    by_extension = given.model_copy(update={"weights_path": "gone.pte", "backend": None})
    for wanted in (by_content, by_extension):
        with pytest.raises(errors.InputError, match=r"is for ExecuTorch .* does not support"):
            backends.load_encoder(wanted, trust=True)
    with pytest.raises(errors.InputError, match="not a TorchScript file but an ExecuTorch file"):
        backends.load_encoder(forged(exported["torchscript"], path))


def test_exported_program_is_recognised_without_backend_name(exported: Exported) -> None:
    """WhiskerToolbox goes by the extension, .pt2; the content is not in doubt."""
    given = exported["exported_program"].spec.model_copy(update={"backend": None})
    assert backends.choose_backend(given, "auto") == "exported_program"
    wrong = given.model_copy(update={"backend": "AOTInductor"})
    with pytest.raises(errors.InputError, match="not an AOTInductor file but an exported program file"):
        backends.load_encoder(wrong)


def test_onnx_is_data_only_and_needs_no_trust(exported: Exported, tiny: resolve.BuiltEncoder) -> None:
    for kind in ("torchscript", "exported_program", "aotinductor"):
        with pytest.raises(errors.InputError, match="--trust"):
            backends.load_encoder(exported[kind].spec.model_copy(update={"genenc": None}))
    encoder = backends.load_encoder(exported["onnx"].spec.model_copy(update={"genenc": None}))
    images = torch.rand(2, 3, 32, 40)
    torch.testing.assert_close(encoder(images)["deep"], tiny.module(images)[0], rtol=1e-5, atol=1e-6)


def test_an_onnx_file_names_its_slots_and_versions(exported: Exported) -> None:
    path = exported["onnx"].artifact_path
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [item.name for item in model.graph.input] == ["image"]
    assert [item.name for item in model.graph.output] == ["deep", "fine"]
    (opset,) = (item.version for item in model.opset_import if not item.domain)
    expected = onnx_file.OnnxFile(ir_version=model.ir_version, opset=opset, external=False, batch_statistics=False)
    assert onnx_file.read(path) == expected
    told = exported["onnx"].spec.genenc.artifact.platform
    assert (told["ir"], told["opset"], told["device"]) == (str(model.ir_version), str(opset), "cpu")


@pytest.mark.parametrize("change", ["opset", "ir"])
def test_newer_onnx_file_is_refused(exported: Exported, tmp_path: Path, change: str) -> None:
    model = onnx.load(exported["onnx"].artifact_path)
    if change == "opset":
        model.opset_import[0].version = 999
    else:
        model.ir_version = 999
    path = tmp_path / "future.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(errors.InputError, match=r"cannot load .*newer onnxruntime, or export it again"):
        backends.load_encoder(forged(exported["onnx"], path))


def test_external_onnx_weights_are_refused(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(exported["onnx"].artifact_path),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert onnx_file.read(path).external
    with pytest.raises(errors.InputError, match="which its digest does not cover"):
        backends.load_encoder(forged(exported["onnx"], path))


@pytest.mark.parametrize("place", ["constant", "branch"])
def test_external_onnx_data_is_found_at_any_depth(tmp_path: Path, place: str) -> None:
    """Onnxruntime reads them from there too, so a digest of the file alone would cover other numbers than those run."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(12))
    made = helper.make_tensor_value_info("y", kind, [3])
    if place == "constant":
        nodes, initial = [helper.make_node("Constant", [], ["y"], value=weight)], []
    else:
        doubled = helper.make_node("Add", ["w", "w"], ["y"])
        branch = helper.make_graph([doubled], "branch", [], [made], [weight])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
        initial = [onnx.numpy_helper.from_array(np.array(True), "c")]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [made], initial))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert onnx_file.read(path).external
    with pytest.raises(errors.InputError, match="which its digest does not cover"):
        onnx_format.load(path, torch.device("cpu"), None)


def test_model_too_large_for_onnx_is_refused(
    tiny: resolve.BuiltEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "LARGEST_BYTES", 1000)
    with pytest.raises(errors.ExportError, match="one ONNX file holds at most"):
        exporter.export_encoder(tiny, out=tmp_path / "out", formats=["onnx"])
    assert not (tmp_path / "out").exists()


def test_missing_onnx_packages_are_named(
    exported: Exported, tiny: resolve.BuiltEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(errors.InputError, match=r"onnx, onnxscript, onnxruntime.*genenc\[onnx\]"):
        exporter.export_encoder(tiny, out=tmp_path, formats=["onnx"])
    with pytest.raises(errors.InputError, match=r"needs onnxruntime, not installed"):
        backends.load_encoder(exported["onnx"].spec)


@pytest.mark.parametrize(
    ("kind", "facts", "words"),
    [
        ("torchscript", {"torch": "9.1.0"}, r"torch 9\.1 or newer, this is 2\.\d+.*genenc export"),
        ("torchscript", {"torch": "1.13.0", "device": "any"}, None),
        ("torchscript", {"torch": "unknown"}, None),
        ("exported_program", {"device": "cuda"}, "the device cuda"),
        ("onnx", {"torch": "9.1.0"}, None),
        ("onnx", {"system": "win32"}, "the operating system win32"),
        ("aotinductor", {"machine": "riscv64"}, None),  # the file itself says otherwise, and it is what runs
    ],
)
def test_spec_is_checked_for_machine(exported: Exported, kind: str, facts: dict[str, str], words: str | None) -> None:
    given = forged(exported[kind], exported[kind].artifact_path, **facts)
    if words is None:
        assert backends.load_encoder(given, device="cpu").backend == kind
        return
    with pytest.raises(errors.InputError, match=words):
        backends.load_encoder(given, device="cpu")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"torch_version": "9.1.0"}, r"torch 9\.1 or newer"),
        ({"schema_version": {"major": 99, "minor": 0}}, "programs of schema 99, this one reads"),
    ],
)
def test_future_program_is_refused(exported: Exported, tmp_path: Path, entry: dict[str, object], words: str) -> None:
    path = tmp_path / "future.pt2"
    with zipfile.ZipFile(exported["exported_program"].artifact_path) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                data = json.dumps(json.loads(data) | entry).encode()
            new.writestr(name, data)
    with pytest.raises(errors.InputError, match=words):
        backends.load_encoder(forged(exported["exported_program"], path))


def test_exported_program_omits_its_example(exported: Exported) -> None:
    with zipfile.ZipFile(exported["exported_program"].artifact_path) as archive:
        assert sum(info.file_size for info in archive.infolist()) < 2 * 3 * 32 * 40 * 4 + 20_000


@pytest.mark.parametrize("kind", ["torchscript", "aotinductor", "exported_program", "onnx"])
def test_time_and_memory_of_each_export_are_recorded(exported: Exported, kind: str) -> None:
    info = exported[kind].spec.genenc.artifact
    assert info.seconds > 0
    assert 50e6 < info.peak_rss_bytes < 64e9


@pytest.mark.slow
def test_peak_memory_includes_temporary_memory() -> None:
    with comparison.Meter() as idle:
        pass
    # Not from an allocator, which may have kept as much.
    with comparison.Meter() as meter, mmap.mmap(-1, 200 << 20) as block:
        block.write(b"x" * len(block))
        meter._done.wait(0.2)
    assert meter.peak_rss_bytes - idle.peak_rss_bytes > 150 << 20
    assert meter.seconds >= 0.2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_exported_program_moves_to_cuda_with_its_constants(exported: Exported, tiny: resolve.BuiltEncoder) -> None:
    encoder = backends.load_encoder(exported["exported_program"].spec, device="cuda")
    images = torch.rand(2, 3, 32, 40)
    found = encoder(images.cuda())["deep"]
    torch.testing.assert_close(found.cpu(), tiny.module(images)[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["onnx", "aotinductor"])
def test_cpu_only_formats_refuse_cuda(exported: Exported, kind: str) -> None:
    with pytest.raises(errors.InputError, match="runs on the CPU, not on 'cuda'"):
        backends.load_encoder(exported[kind].spec, device="cuda")

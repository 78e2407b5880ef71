"""`Encoder`: the same numbers from every backend, every wrong call refused, and what may be loaded."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import forked
from genenc_core import errors, spec
from genenc_core.export import exporter
from genenc_core.models import resolve
from genenc_core.runtime import artifact_kinds, backends
from genenc_core.runtime.formats import aotinductor
from genenc_core.system import digests

FORMATS = ["torchscript", "aotinductor", "exported_program", "onnx"]
BACKENDS = ["eager", *FORMATS]
Exported = dict[str, exporter.ExportedModel]


@pytest.fixture(scope="session")
def encoders(tiny: resolve.BuiltEncoder, exported: Exported) -> dict[str, backends.Encoder]:
    """The tiny model through every backend, with the bounds 1 to 6."""
    eager = backends.load_encoder(exported["torchscript"].spec, backend="eager", device="cpu", trust=True)
    loaded = {kind: backends.load_encoder(model.spec, device="cpu") for kind, model in exported.items()}
    return {"eager": eager} | loaded


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand((batch, 3, 32, 40), generator=torch.Generator().manual_seed(batch))


def changed(model_spec: spec.RuntimeModelSpec, **values: object) -> spec.RuntimeModelSpec:
    return model_spec.model_copy(update=values)


def with_artifact(model: exporter.ExportedModel, path: Path) -> spec.RuntimeModelSpec:
    """The spec of `model` with another file, whose digest it records."""
    info = model.spec.genenc.artifact.model_copy(update={"sha256": digests.ARTIFACT.hex_of_file(path)})
    block = model.spec.genenc.model_copy(update={"artifact": info})
    return changed(model.spec, weights_path=str(path), genenc=block)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 2, 15, 16, 20])
def test_every_backend_equals_the_model(
    encoders: dict[str, backends.Encoder], tiny: resolve.BuiltEncoder, backend: str, batch: int
) -> None:
    encoder = encoders[backend]
    found = encoder(images(batch))
    assert (encoder.backend, encoder.input_size, encoder.device) == (backend, (32, 40), torch.device("cpu"))
    assert list(found) == ["deep", "fine"]
    for tensor, expected in zip(found.values(), tiny.module(images(batch)), strict=True):
        assert tensor.is_contiguous()
        tolerance = 1e-5 if backend in ("aotinductor", "onnx") else 0
        assert float((tensor - expected).abs().max() / expected.abs().max()) <= tolerance


def nhwc_view() -> torch.Tensor:
    return torch.rand(2, 32, 40, 3).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: images()[0], r"takes \[B, 3, 32, 40\], got \[3, 32, 40\]"),
        (lambda: torch.rand(2, 3, 40, 32), r"got \[2, 3, 40, 32\]"),
        (lambda: torch.rand(2, 3, 64, 80), "fit the images"),
        (lambda: torch.rand(2, 1, 32, 40), r"got \[2, 1, 32, 40\]"),
        (lambda: (images() * 255).to(torch.uint8), r"takes float32, got torch\.uint8.*/ 255"),
        (lambda: images().half(), r"got torch\.float16"),
        (lambda: images().double(), r"got torch\.float64"),
        (nhwc_view, r"\.contiguous\(\)"),
        (lambda: images().to(memory_format=torch.channels_last), "contiguous"),
        (lambda: torch.rand(2, 3, 32, 80)[..., ::2], "contiguous"),
        (lambda: images().to("meta"), "takes tensors on cpu, got one on meta"),
        (lambda: images(21), r"takes batches of Dynamic\(1, 20\), got 21"),
        (lambda: torch.rand(0, 3, 32, 40), r"got 0"),
    ],
)
def test_a_wrong_call_is_refused_before_it_runs(
    encoders: dict[str, backends.Encoder], make: Callable[[], torch.Tensor], words: str
) -> None:
    with pytest.raises(errors.EncoderError, match=words):
        encoders["eager"](make())


@pytest.mark.parametrize("backend", FORMATS)
def test_every_backend_refuses_wrong_calls(encoders: dict[str, backends.Encoder], backend: str) -> None:
    for wrong in (torch.rand(2, 3, 40, 32), images().half(), nhwc_view(), images(21)):
        with pytest.raises(errors.EncoderError, match=r"takes|contiguous"):
            encoders[backend](wrong)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([], "returned 0 outputs"),
        ([torch.zeros(2, 8, 4, 5)], "returned 1 outputs, but its spec declares 2"),
        ([torch.zeros(2, 8, 4, 5), torch.zeros(2, 4, 8, 10), torch.zeros(1)], "returned 3 outputs"),
        ([torch.zeros(2, 8, 5, 4), torch.zeros(2, 4, 8, 10)], "output 'deep' is"),
        ([torch.zeros(1, 8, 4, 5), torch.zeros(2, 4, 8, 10)], r"declares float32 \[2, 8, 4, 5\]"),
        ([torch.zeros(2, 8, 4, 5), torch.zeros(2, 4, 8, 10).half()], "output 'fine' is torch.float16"),
        ([torch.zeros(2, 8, 4, 5), "map"], "output 'fine' is a str"),
    ],
)
def test_outputs_violating_the_spec_are_refused(exported: Exported, outputs: list[object], words: str) -> None:
    encoder = backends.Encoder(
        exported["torchscript"].spec, lambda _: outputs, backend="torchscript", device=torch.device("cpu")
    )
    with pytest.raises(errors.EncoderError, match=words):
        encoder(images())


def test_a_process_wide_precision_does_not_change_a_float32_model(exported: Exported) -> None:
    """CPUs with bfloat16 instructions would multiply in it under torch's "medium"."""
    seen: list[str] = []

    def run(_: torch.Tensor) -> list[torch.Tensor]:
        seen.append(torch.get_float32_matmul_precision())
        return [torch.zeros(2, 8, 4, 5), torch.zeros(2, 4, 8, 10)]

    before = torch.get_float32_matmul_precision()
    encoder = backends.Encoder(exported["torchscript"].spec, run, backend="torchscript", device=torch.device("cpu"))
    try:
        torch.set_float32_matmul_precision("medium")
        encoder(images())
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]


def test_eager_encoder_takes_any_batch_and_describes_the_model(tiny: resolve.BuiltEncoder) -> None:
    encoder = backends.eager_encoder(tiny)
    assert encoder.spec.problems() == []
    assert encoder.spec.weights_path is None
    assert encoder.spec.resolved_batch_mode().describe() == "Dynamic(1, unlimited)"
    assert encoder.preprocessing == tiny.preprocessing
    assert torch.equal(encoder(images(40))["deep"], tiny.module(images(40))[0])


@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_calls_set_tf32_themselves(exported: Exported, monkeypatch: pytest.MonkeyPatch, tf32: bool) -> None:
    seen: list[tuple[bool, bool]] = []

    def run(_images: torch.Tensor) -> list[torch.Tensor]:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return []

    monkeypatch.setattr(backends.Encoder, "_check_input", lambda *_: None)
    model_spec, cuda = exported["torchscript"].spec, torch.device("cuda")
    encoder = backends.Encoder(model_spec, run, backend="torchscript", device=cuda, tf32=tf32)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
        with pytest.raises(errors.EncoderError, match="returned 0 outputs"):
            encoder(images())
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert seen == [(tf32, tf32)]


def test_spec_without_artifact_runs_eagerly(tiny: resolve.BuiltEncoder) -> None:
    encoder = backends.load_encoder(exporter.spec_for(tiny, model_id="again"), device="cpu", trust=True)
    assert encoder.backend == "eager"
    assert torch.equal(encoder(images())["fine"], tiny.module(images())[1])


def test_eager_with_other_weights_is_refused(tiny: resolve.BuiltEncoder) -> None:
    made = exporter.spec_for(tiny, model_id="other")
    source = made.genenc.source.model_copy(update={"weights": "random:2"})
    with pytest.raises(errors.InputError, match="are not those of model spec"):
        backends.load_encoder(changed(made, genenc=made.genenc.model_copy(update={"source": source})), trust=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_changed_artifact_is_refused_even_with_trust(exported: Exported, tmp_path: Path, kind: str) -> None:
    path = tmp_path / exported[kind].artifact_path.name
    data = bytearray(exported[kind].artifact_path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for trust in (False, True):
        with pytest.raises(errors.InputError, match="changed or damaged"):
            backends.load_encoder(changed(exported[kind].spec, weights_path=str(path)), trust=trust)


def test_a_missing_artifact_is_named(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=r"gone\.pt' does not exist"):
        backends.load_encoder(changed(exported["torchscript"].spec, weights_path=str(tmp_path / "gone.pt")))


def test_a_spec_of_whiskertoolbox_needs_trust_and_stretches(exported: Exported, tiny: resolve.BuiltEncoder) -> None:
    foreign = changed(exported["torchscript"].spec, genenc=None)
    with pytest.raises(errors.InputError, match="--trust"):
        backends.load_encoder(foreign)
    encoder = backends.load_encoder(foreign, trust=True, device="cpu")
    assert encoder.preprocessing == spec.Preprocessing(height=32, width=40, fit="stretch", antialias=False)
    assert torch.equal(encoder(images())["deep"], tiny.module(images())[0])


@pytest.mark.parametrize("content", ["aotinductor", "exported program", "state dict", "html"])
def test_other_kind_of_file_told(exported: Exported, tiny: resolve.BuiltEncoder, tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.pt"
    if content == "aotinductor":
        path = exported["aotinductor"].artifact_path
    elif content == "exported program":
        path = tmp_path / "model.pt2"
        torch.export.save(torch.export.export(tiny.module, (images(),)), path)
    elif content == "state dict":
        torch.save(tiny.module.state_dict(), path)
    else:
        path.write_text("<html>")
    words = "an unknown or damaged file" if content == "html" else content
    with pytest.raises(errors.InputError, match=rf"(?i)not a TorchScript file but .*{words}"):
        backends.load_encoder(with_artifact(exported["torchscript"], path))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_artifact_is_refused(exported: Exported, tmp_path: Path, kind: str) -> None:
    path = tmp_path / exported[kind].artifact_path.name
    path.write_bytes(exported[kind].artifact_path.read_bytes()[:-2000])
    with pytest.raises(errors.InputError, match="damaged"):
        backends.load_encoder(with_artifact(exported[kind], path))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"AOTI_DEVICE_KEY": "cuda"}, "the device cuda"),
        ({"AOTI_MACHINE": "riscv64"}, "the machine riscv64"),
        ({"AOTI_PLATFORM": "win32"}, "the operating system win32"),
        ({aotinductor.TORCH_KEY: "1.13.1"}, r"torch 1\.13, this is 2"),
    ],
)
def test_foreign_platform_is_refused(exported: Exported, tmp_path: Path, entry: dict[str, str], words: str) -> None:
    path = tmp_path / "foreign.pt2"
    with zipfile.ZipFile(exported["aotinductor"].artifact_path) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("wrapper_metadata.json"):
                data = json.dumps(json.loads(data) | entry).encode()
            new.writestr(name, b"no library" if name.endswith(".so") else data)
    with pytest.raises(errors.InputError, match=words):
        backends.load_encoder(with_artifact(exported["aotinductor"], path))


def test_a_package_for_other_cpu_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_kinds, "_CPU_FEATURES", {"AVX2": lambda: True, "AVX512": lambda: False})
    rules = {"kind": "AOTInductor", "torch_rule": "same"}
    artifact_kinds.check(Path("a.pt2"), {"isa": "AVX2"}, **rules)
    with pytest.raises(errors.InputError, match="CPU instructions AVX512, which this CPU lacks"):
        artifact_kinds.check(Path("a.pt2"), {"isa": "AVX2 AVX512"}, **rules)


@pytest.mark.slow
def test_a_loaded_package_leaves_no_file_behind(exported: Exported, tmp_path: Path) -> None:
    code = (
        "import sys, torch, os, tempfile\ntempfile.tempdir = None\n"
        "from pathlib import Path\nfrom genenc_core import spec\n"
        "from genenc_core.runtime import backends\n"
        "encoder = backends.load_encoder(spec.load_spec(Path(sys.argv[1])))\n"
        "files = [file for _, _, files in os.walk(os.environ['TMPDIR']) for file in files]\n"
        "print(files, tuple(encoder(torch.rand(3, 3, 32, 40))['deep'].shape))\n"
    )
    found = forked.run(
        [sys.executable, "-c", code, str(exported["aotinductor"].spec_path)],
        capture_output=True,
        text=True,
        check=True,
        env={"TMPDIR": str(tmp_path), "PATH": "/nowhere"},  # no compiler either
    )
    assert found.stdout.strip() == "[] (3, 8, 4, 5)"
    assert found.stderr == ""
    # (importing torchvision makes an empty folder torchinductor_USER)
    assert [path for path in tmp_path.rglob("*") if path.is_file() or "aoti" in path.name] == []


def test_library_unpacks_to_scratch(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    original = torch._C._aoti.AOTIModelContainerRunnerCpu

    def remembered(path: str, runners: int) -> object:
        used.append(path)
        return original(path, runners)

    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", remembered)
    backends.load_encoder(exported["aotinductor"].spec, scratch=tmp_path)
    assert Path(used[0]).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "backend", "words"),
    [
        ({}, "aotinductor", "is for the backend TorchScript"),
        ({"weights_path": None, "genenc": None}, "auto", "names no weights_path"),
        ({"weights_path": "model.pte", "backend": "ExecuTorch"}, "auto", "does not support"),
        ({"weights_path": "model.bin", "backend": None}, "auto", "does not support"),
        ({"genenc": None}, "eager", "does not name its source model"),
    ],
)
def test_unrunnable_spec_says_why(exported: Exported, values: dict[str, object], backend: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        backends.load_encoder(changed(exported["torchscript"].spec, **values), backend=backend)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(3, 32, 40), (3, 8, 8)], "one input slot"),
        ([(4, 32, 40)], r"genenc.mean has 3 numbers, but inputs\[0\] 4 channels"),
        ([(32, 40)], "one input slot"),
        ([(3, 40, 32)], r"has 32 x 40 pixels, inputs\[0\] 40 x 32"),
    ],
)
def test_spec_of_no_image_encoder_is_refused(exported: Exported, shapes: list[tuple[int, ...]], words: str) -> None:
    slots = tuple(spec.SlotSpec(name=f"slot{index}", shape=shape) for index, shape in enumerate(shapes))
    with pytest.raises(errors.SpecError, match=words):
        backends.load_encoder(changed(exported["torchscript"].spec, inputs=slots))


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nonsense"])
def test_missing_device_is_refused(exported: Exported, device: str) -> None:
    with pytest.raises(errors.InputError, match="device"):
        backends.load_encoder(exported["torchscript"].spec, device=device)


def test_package_refuses_another_device(exported: Exported) -> None:
    with pytest.raises(errors.InputError, match="runs on the CPU"):
        backends.load_encoder(exported["aotinductor"].spec, device="cuda:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["eager", "torchscript"])
def test_cuda_is_close_to_cpu(exported: Exported, tiny: resolve.BuiltEncoder, backend: str) -> None:
    encoder = backends.load_encoder(exported["torchscript"].spec, backend=backend, device="cuda")
    found = encoder(images().cuda())["deep"]
    torch.testing.assert_close(found.cpu(), tiny.module(images())[0], rtol=1e-2, atol=1e-3)
    assert next(tiny.module.parameters()).device == torch.device("cpu")

"""The export guide: every command in it works as written, its C++ compiles, and its messages are the ones we give."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import genenc_core
import pictures
from genenc_core import spec
from genenc_core.export import exporter
from genenc_core.runtime import backends

PACKAGE = Path(genenc_core.__file__).parent
GUIDE = (PACKAGE / "export" / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the guide's code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.S | re.M)


@pytest.mark.slow
def test_every_command_of_the_guide_works_as_written(
    genenc: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pictures.write_folder(tmp_path / "photos", 3)
    module, checkpoint = blocks("python")
    assert module.startswith("# my_model.py\n")
    (tmp_path / "my_model.py").write_text(module)
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 14
    try:
        exec(checkpoint, {})
        for command in commands:
            assert command[0] == "genenc"
            said = genenc(*command[1:])
            assert (said.code, said.err) == (0, ""), command
    finally:
        sys.modules.pop("my_model", None)
    backends_seen = {spec.load_spec(path).backend for path in (tmp_path / "exported").rglob("*_spec.json")}
    assert backends_seen == {"TorchScript", "ExportedProgram", "ONNX", "AOTInductor"}
    layers = spec.load_spec(tmp_path / "exported" / "layers" / "resnet18_torchscript_spec.json")
    assert [(slot.name, slot.shape) for slot in layers.outputs] == [("layer2", (128, 8, 8)), ("layer4", (512, 2, 2))]
    six = spec.load_spec(tmp_path / "exported" / "six" / "resnet18_torchscript_spec.json")
    assert six.inputs[0].shape == (6, 64, 64)
    assert six.genenc is not None
    assert six.genenc.mean == (0.14,) * 6
    assert spec.load_spec(tmp_path / "run-96x128" / "model_spec.json").outputs[0].shape == (16, 12, 16)


@pytest.mark.slow
def test_the_guides_cpp_prints_what_genenc_computes(
    exported: dict[str, exporter.ExportedModel], tmp_path: Path
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    (code,) = blocks("cpp")
    assert "{2, 3, 64, 64}" in code
    (tmp_path / "run.cpp").write_text(code.replace("{2, 3, 64, 64}", "{2, 3, 32, 40}"))
    root = torch.__path__[0]
    include = [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
    link = [f"-L{root}/lib", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--no-as-needed", f"-Wl,-rpath,{root}/lib"]
    program = tmp_path / "run"
    subprocess.run(["g++", "-std=c++20", tmp_path / "run.cpp", "-o", program, *include, *link], check=True)
    for kind in ("torchscript", "aotinductor"):
        model = exported[kind]
        said = subprocess.run([program, model.artifact_path], check=True, capture_output=True, text=True).stdout
        found = backends.load_encoder(model.spec, device="cpu")(torch.full((2, 3, 32, 40), 0.25))
        lines = said.splitlines()
        assert len(lines) == len(found) == 2
        for line, tensor in zip(lines, found.values(), strict=True):
            shape, total = line.rsplit(" ", 1)
            assert shape == str(list(tensor.shape))
            assert float(total) == pytest.approx(float(tensor.double().sum()), rel=1e-4)


def test_the_guides_messages_are_ours() -> None:
    """A message that changes in the code must change in the guide."""
    files = [path for name in ("export", "runtime", "run") for path in (PACKAGE / name).rglob("*.py")]
    code = " ".join(path.read_text() for path in (*files, PACKAGE / "spec_edits.py"))
    # Texts run on over several literals, and hold values where the guide has dots.
    code = re.sub(r'"\s*f?"', "", code)
    rows = re.findall(r"^\| (`.*) \| .* \|$", GUIDE.partition("## What can go wrong")[2], flags=re.M)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 20
    for text in quoted:
        pattern = ".{1,80}?".join(re.escape(part) for part in re.split(r" ?\.\.\. ?", text) if part)
        assert re.search(pattern, code, flags=re.S), text

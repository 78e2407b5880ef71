"""The guide for TerraTorch users: its files are read and built, its Python runs, its tables are complete."""

import re
from pathlib import Path

import pytest

from genenc_core.factory import plan, registries
from genenc_core.models import resolve

GUIDE = Path(__file__).parents[3] / "genenc_core" / "factory" / "README.md"


@pytest.mark.slow
def test_model_files_in_the_guide_build(tmp_path: Path) -> None:
    found = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    shapes = {}
    for name, content in found:
        path = tmp_path / name
        path.write_text(content)
        built = resolve.build_encoder(resolve.ModelRequest(name=str(path), weights="random:0"))
        shapes[name] = {slot.name: slot.shape for slot in built.outputs}
    assert shapes["vit.yaml"] == {"logits": (2, 64, 64)}
    assert shapes["seg.toml"]["logits"] == (3, 64, 96)
    assert shapes["seg.toml"]["backbone_3"] == (512, 2, 3)


def test_python_in_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    exec(code, {})
    assert capsys.readouterr().out == "torch.Size([1, 2, 64, 64])\n"


@pytest.mark.slow
def test_guide_lists_all_parts_and_arguments() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    parts = [*registries.DECODER_REGISTRY, *registries.NECK_REGISTRY]
    missing = [name for name in parts if f"`{name.removeprefix('genenc_')}`" not in text]
    assert missing == []
    assert [name for name in plan.ARGUMENTS if f"`{name}`" not in text] == []

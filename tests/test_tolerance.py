"""TOLERANCE.md: its tables are those of the committed results, and its bounds those of the product."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"
PAGE = ROOT / "genenc_core" / "TOLERANCE.md"


def script(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    patch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Forget the scripts, whose names other modules may have."""
    for name in ("tolerance", "same_bytes", "encoders"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", ["tolerance", "same_bytes"])
def test_tables_are_those_of_the_results(patch: pytest.MonkeyPatch, name: str) -> None:
    """`python tests/benchmarks/NAME.py --render` writes them."""
    known = json.loads((BENCHMARKS / f"{name}.json").read_text())
    page = PAGE.read_text(encoding="utf-8")
    assert script(name, patch).in_page(page, known) == page


def test_the_bounds_hold_and_are_those_of_the_product(patch: pytest.MonkeyPatch) -> None:
    found = script("tolerance", patch)
    known = json.loads((BENCHMARKS / "tolerance.json").read_text())
    assert known["encoders"].keys() <= found.ENCODERS.keys()
    assert len(known["encoders"]) > 5
    assert not list(found.exceeded(known))
    wrong = {"encoders": {"ViT-S/16": {"batch": {"relative": 2 * found.ROUNDING}}}}
    assert len(list(found.exceeded(wrong))) == 1

    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    export = (ROOT / "genenc_core" / "export" / "README.md").read_text(encoding="utf-8")
    devices = (ROOT / "genenc_core" / "encoding" / "DEVICES.md").read_text(encoding="utf-8")
    assert (found.ROUNDING, found.EXPORT) == (1e-5, 1e-5)
    assert "or `--compile`: 1e-5 of the largest value" in page
    assert "exported models: 1e-5" in page
    assert "A difference above 1e-5 relative is refused" in export
    assert found.HALF == 0.1
    assert "`float16`: 0.1 of the norm" in page
    assert "above 10 % a warning" in devices


def test_every_model_had_the_same_bytes_in_all_runs(patch: pytest.MonkeyPatch) -> None:
    found = script("same_bytes", patch)
    known = json.loads((BENCHMARKS / "same_bytes.json").read_text())
    assert known["rows"]
    assert all(map(found.holds, known["rows"].values()))
    one = next(iter(known["rows"].values()))
    assert not found.holds({**one, "contents": 2})
    assert not found.holds({**one, "undecided": 1})

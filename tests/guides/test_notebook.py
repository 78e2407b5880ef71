"""The notebook of the first run: its cells run in order, and it is kept without outputs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[2] / "genenc_core" / "guides" / "first_run.ipynb"
BOOK: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in BOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, without a window."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


@pytest.mark.slow
def test_its_cells_run_in_order(folder: Path) -> None:
    found: dict[str, Any] = {}
    for cell in CODE:
        exec(cell, found)
    assert found["run"].status().ok == 12
    assert found["cosine"].shape == (4, 4)
    x, y = found["row"].point_x.item(), found["row"].point_y.item()
    across, down, left, top = found["row"].image_affine.values
    cell = int((y * down + top) // 32), int((x * across + left) // 32)
    assert np.unravel_index(found["cosine"].values.argmax(), (4, 4)) == cell
    assert len(found["found"].image_ids) == 3
    pytest.importorskip("matplotlib")
    assert "img_03.png" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_jupyter_runs_it(folder: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute(cwd=str(folder))
    assert (folder / "first-run" / "images.parquet").is_file()


def test_it_is_kept_without_outputs_and_its_links_lead_somewhere() -> None:
    assert [cell["outputs"] for cell in BOOK["cells"] if cell["cell_type"] == "code"] == [[]] * len(CODE)
    links = re.findall(r"\]\(([^)#]+)", "".join("".join(cell["source"]) for cell in BOOK["cells"]))
    assert [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []
    assert all(cell["execution_count"] is None for cell in BOOK["cells"] if cell["cell_type"] == "code")

"""A run is made in an empty folder: what somebody else keeps there is not written over, whatever its name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from genenc_core import errors
from genenc_core.run import driver, out_folder

Extract = Callable[..., driver.Result]
OWN = ("README.md", "images.parquet", "model_spec.json", "model/weights.pt", "provenance/notes.txt")


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("hidden", [(), (".git/HEAD",)])
def test_users_file_of_our_name_is_kept(extract: Extract, tmp_path: Path, name: str, hidden: tuple[str, ...]) -> None:
    root = tmp_path / "run"
    for item in (name, *hidden):
        (root / item).parent.mkdir(parents=True, exist_ok=True)
        (root / item).write_text("mine")
    with pytest.raises(errors.InputError, match=f"it holds '{name.partition('/')[0]}'"):
        extract()
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {name, *hidden}
    assert (root / name).read_text() == "mine"


def test_failed_creation_is_continued(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with monkeypatch.context() as broken:
        broken.setattr(driver.planning.store_plan, "make_plan", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract()
    assert (root / "README.md").exists()
    assert extract().failures == ()
    assert not (root / out_folder.CLAIM).exists()


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["features.zarr/other", "model/a/b", "_txn/x", "provenance/x"])
def test_no_run_is_made_within_the_files_of_another(extract: Extract, tmp_path: Path, inner: str) -> None:
    extract()
    with pytest.raises(errors.InputError, match="is inside the run"):
        out_folder.check(str(tmp_path / "run" / inner))
    out_folder.check(str(tmp_path / "run" / "next"))

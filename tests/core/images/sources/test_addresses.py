"""Lists in which addresses are recognised, wherever they are, and read again for what is not recorded."""

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from genenc_core import errors
from genenc_core.images.sources import addresses, image_source, listing
from genenc_core.system import web

URL = "https://host/a.png?sig=x"


@pytest.mark.parametrize("before", [0, 1, *range(2**20 - 32, 2**20 - 20), 2**20 + 5])
def test_an_address_is_found_wherever_it_is(tmp_path: Path, before: int) -> None:
    path = tmp_path / "list.csv"
    rows = f"a.png,{'x' * 1000}\n" * (before // 1007) + f"a.png,{'x' * (before % 1007)}\n"
    path.write_text(f"image,note\n{rows}{URL},\n")
    assert addresses.are_in(path, "image")
    path.write_text(f"image,note\n{rows}b.png,{URL}\n")
    assert not addresses.are_in(path, "image")
    path.write_text("image\na.png\nfile:///b.png\n")
    assert not addresses.are_in(path, "image")


def test_in_json_lines_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": URL}).replace("/", "\\/") + "\n")
    assert addresses.are_in(tmp_path / "list.jsonl", "image")
    parquet.write_table(pa.table({"image": ["a.png", URL]}), tmp_path / "list.parquet")
    assert addresses.are_in(tmp_path / "list.parquet", "image")
    parquet.write_table(pa.table({"image": [1, 2]}), tmp_path / "list.parquet")
    assert not addresses.are_in(tmp_path / "list.parquet", "image")


def test_credentials_are_found_again_or_missed_by_name(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"image\nhttps://me:word@host/b.png\n{URL}\nc.png\n")
    signed = addresses.Signed(path, "image")
    paths, members = ["https://host/a.png", "https://host/b.png", "/c.png"], ["!tag:", "!:", ""]
    assert signed.places(paths, members) == ([URL, "https://me:word@host/b.png", "/c.png"], ["tag:", ":", ""])
    with pytest.raises(errors.InputError, match=r"'https://host/z.png' is signed, and the list .* no longer has it"):
        signed.places(["https://host/z.png"], ["!:"])
    path.unlink()
    with pytest.raises(errors.InputError, match="cannot read"):
        addresses.Signed(path, "image").places(paths, members)
    assert addresses.Signed(path, "image").places(["/c.png"], [""]) == (["/c.png"], [""])


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ("h/r.png?key=10", "h/r.png?key=20", "differ from 'https://h/r.png' only in 'key', which is taken for"),
        ("h/r.png?id=1&sp=r", "h/r.png?id=1&sp=w&st=2", "'https://h/r.png\\?id=1' only in 'sp', 'st'"),
        ("a:b@h/r.png", "c:d@h/r.png", "only in the user"),
        ("h/r.png?id=10", "h/r.png?id=20", ""),
        ("h/r.png?sig=x&se=1", "h/r.png?sig=y&se=2", ""),
        ("h/r.png?key=10", "h/r.png?key=10", ""),
    ],
)
def test_addresses_that_would_be_recorded_alike(tmp_path: Path, first: str, second: str, refused: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"image,image_id\nhttps://{first},1\nhttps://{second},2\n")
    context = pytest.raises(errors.InputError, match=refused) if refused else contextlib.nullcontext()
    with context:
        list(listing._entries(image_source.open_source(str(path)), None, 100))
    clean, had = web.without_credentials(f"https://{first}")
    with context:
        addresses.Signed(path, "image").places([clean], ["!:" if had else ""])

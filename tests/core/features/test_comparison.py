"""Two sets of features are compared by image: exactly, whatever the blocks and the order of the rows."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genenc_core import api, errors
from genenc_core.features import comparison, moments, vectors

Call = Callable[..., api.Run]


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear CKA by its definition: HSIC of the centred Gram matrices."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    centre = np.eye(len(x)) - 1 / len(x)
    own, other = (centre @ (each @ each.T) @ centre for each in (x, y))
    return float((own * other).sum() / np.sqrt((own * own).sum() * (other * other).sum()))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(3, 60),
    channels=st.integers(1, 12),
    others=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 2**32),
)
def test_cka_in_blocks_is_that_of_its_definition(
    rows: int, channels: int, others: int, cuts: list[int], offset: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, channels)) + offset
    y = x[:, :1] * random.normal(size=others) + random.normal(size=(rows, others))
    found = moments.CrossProducts(channels, others)
    for part in zip(np.split(x, sorted(cuts)), np.split(y, sorted(cuts)), strict=True):
        found.add(*part)
    expected = cka(x, y)
    assert found.cka() == pytest.approx(expected, abs=1e-7)
    assert moments.cka_of_rows(x, y) == pytest.approx(expected, abs=1e-7)
    rotated = np.linalg.qr(random.normal(size=(channels, channels)))[0]
    turned = moments.CrossProducts(channels, channels)
    turned.add(x, 3 * x @ rotated + 1)
    assert turned.cka() == pytest.approx(1, abs=1e-7)


def test_cka_of_constant_vectors_is_none() -> None:
    found = moments.CrossProducts(2, 2)
    found.add(np.ones((5, 2)), np.random.default_rng(0).normal(size=(5, 2)))
    assert found.cka() is None


@pytest.mark.slow
@pytest.mark.parametrize("mebibyte", [1, 2**20])
def test_rows_in_another_order_are_aligned_by_name(
    extract: Call, photos: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibyte: int
) -> None:
    one = extract("one", points=str(labels))
    names = [f"img_{at:03d}.png" for at in (9, 0, 4, 5, 3, 8, 1)]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_id", "path"], *((name, str(photos / name)) for name in names)])
    other = extract("other", images=str(tmp_path / "list.csv"), points=str(labels), weights="random:1")
    monkeypatch.setattr(comparison, "MEBIBYTE", mebibyte)
    for product in ("features", "probes"):
        memory = 4000 if mebibyte == 1 else 256
        found = api.compare(tmp_path / "one", tmp_path / "other", product=product, memory=memory, worst=3)
        arrays = [run.arrays() for run in (one, other)]
        at = [arrays[0].image_id.values.tolist().index(name) for name in names]
        x, y = arrays[0][product].values[at], arrays[1][product].values
        x, y = (each.reshape(-1, each.shape[-1]) for each in (x, y))
        finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        x, y = x[finite].astype(np.float64), y[finite].astype(np.float64)
        assert (found.common, found.vectors, found.identical) == (7, len(x), 0)
        assert (found.sides[0].only_here, found.sides[1].only_here) == (4, 0)
        assert found.sides[0].names == ("img_002.png", "img_006.png", "img_007.png", "img_010.png")
        assert found.left_out.get("not_finite", 0) == int((~finite).sum())
        difference = np.linalg.norm(x - y, axis=1)
        cosine = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        for spread, values in ((found.difference, difference), (found.cosine, cosine)):
            assert spread is not None
            expected = values.min(), values.mean(), np.median(values), values.max()
            assert (spread.least, spread.mean, spread.median, spread.largest) == pytest.approx(expected)
        assert found.cka == pytest.approx(cka(x, y))
        assert found.largest_value == pytest.approx(np.abs(x - y).max())
        assert [pair.difference for pair in found.worst] == pytest.approx(np.sort(difference)[::-1][:3])
        row = arrays[1].image_id.values.tolist().index(found.worst[0].image_id)
        assert found.worst[0].rows == (at[row], row)
        names_of = [entry.name for entry in found.identity]
        assert names_of == ["weights", "images.rows", "images.digest"]
        assert found.made_with == ()
    assert not found.same


@pytest.mark.slow
def test_a_run_is_the_same_as_itself(
    extract: Call, labels: Path, tmp_path: Path, unchanged: Callable[[Path], Callable[[], None]]
) -> None:
    extract("run", "features=global_avg_pool", "maps=none@float16", "probes=spatial_point(cell)", points=str(labels))
    check = unchanged(tmp_path / "run")
    for product in ("features", "maps", "probes"):
        found = api.compare(tmp_path / "run", tmp_path / "run", product=product)
        assert found.identical == found.vectors > 0
        assert found.cosine is not None
        assert (found.cosine.least, found.largest_value, found.worst, found.identity) == (1, 0, (), ())
        assert found.cka == pytest.approx(1)
        assert found.same == (product != "probes")  # some labels are missing
    check()


@pytest.mark.slow
def test_products_of_other_lengths_have_a_cka_alone(extract: Call, tmp_path: Path) -> None:
    run = extract("run", "features=global_avg_pool", "maps=none@float32")
    found = api.compare(tmp_path / "run", tmp_path / "run", product="features", other_product="maps")
    assert (found.cosine, found.difference, found.worst) == (None, None, ())
    x, y = (run.arrays()[name].values.reshape(11, -1) for name in ("features", "maps"))
    assert found.cka == pytest.approx(cka(x, y))
    assert found.vectors == 11


@pytest.mark.slow
def test_cka_in_little_memory_is_that_of_rows_or_says_what_it_needs(
    extract: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extract("run", "maps=none@float32", image_size="96")
    values = run.arrays().maps.values.reshape(11, -1)
    monkeypatch.setattr(comparison, "MEBIBYTE", 2**10)
    monkeypatch.setattr(vectors, "MEBIBYTE", 2**10)
    needed = -(-moments.CrossProducts.bytes(values.shape[1], values.shape[1]) // 2**10)
    for memory, expected in ((needed, 1.0), (needed - 1, 1.0), (8, None)):
        found = api.compare(tmp_path / "run", tmp_path / "run", memory=memory)
        assert found.cka == (None if expected is None else pytest.approx(expected))
    assert f"give --memory {needed}" in found.why_no_cka


@pytest.mark.slow
def test_other_files_under_one_name_are_refused_unless_said(extract: Call, photos: Path, tmp_path: Path) -> None:
    extract("one")
    (photos / "img_003.png").write_bytes((photos / "img_004.png").read_bytes())
    (photos / "img_007.png").write_bytes(b"no image")
    extract("other", max_failures="100%")
    with pytest.raises(errors.InputError, match=r"2 images .* other files \(img_003\.png, img_007\.png\): .*different"):
        api.compare(tmp_path / "one", tmp_path / "other")
    found = api.compare(tmp_path / "one", tmp_path / "other", different_images=True)
    assert (found.other_files, found.left_out, found.identical, found.vectors) == (2, {"rows": 1}, 9, 10)
    assert [pair.image_id for pair in found.worst] == ["img_003.png"]


@pytest.mark.slow
def test_versions_of_a_dataset(grown: Path) -> None:
    found = api.compare(grown, grown, version=1, other_version=3, different_images=True)
    assert (found.common, found.sides[0].only_here, found.sides[1].only_here) == (9, 2, 4)
    assert [pair.image_id for pair in found.worst] == ["img_003.png"]
    assert found.identical == 8


@pytest.mark.slow
def test_what_cannot_be_compared_is_named(extract: Call, labels: Path, tmp_path: Path, photos: Path) -> None:
    extract("one", points=str(labels))
    (photos / "img_000.png").rename(photos / "other.png")
    extract("other", "v=global_avg_pool", limit=None)
    one, other = tmp_path / "one", tmp_path / "other"
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "has the products features, probes, .* v: give --product and --other-product"),
        ({"product": "features", "other_product": "w"}, "has no product 'w'"),
        ({"product": "probes", "other_product": "v"}, "only one has a vector for each point"),
        ({"worst": -1}, "worst -1 is not valid"),
    ]
    for options, words in cases:
        with pytest.raises(errors.InputError, match=words):
            api.compare(one, other, **options)
    for path in photos.iterdir():
        if path.name != "other.png":
            path.unlink()
    extract("third")
    with pytest.raises(errors.InputError, match=r"no image in common: their names are like 'img_000\.png' and 'other"):
        api.compare(one, tmp_path / "third")

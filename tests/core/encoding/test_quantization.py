"""Integers with a scale per vector: the nearest ones, to within half a step, and what they lose, by plain NumPy."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from genenc_core import errors, float_values
from genenc_core.encoding import products, quantization
from genenc_core.spec import SlotSpec

ROUNDING = 2.0**-15
"""Of float32 divisions, in steps: 255 times half a unit in the last place, and some more."""
TEXTS = {
    "vector": ("v=none", (5,), ()),
    "map": ("v=none", (5, 2, 3), ()),
    "tokens": ("v=none", (4, 5), ()),
    "probes": ("v=spatial_point(cell)", (5, 2, 3), (2, 5)),
}
"""Product, shape of its slot, and of its value if that is another."""


def product(kind: str, dtype: str) -> products.Product:
    text, slot, _ = TEXTS[kind]
    parsed = products.parse_product(f"{text}@{dtype}")
    (built,) = products.build_products([parsed], [SlotSpec(name="s", shape=slot)], point_count=2)
    return built


def shape_of(kind: str) -> tuple[int, ...]:
    return TEXTS[kind][2] or TEXTS[kind][1]


def stored(of: products.Product, values: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in quantization.stored(of, torch.from_numpy(values)).items()}


def decoded(of: products.Product, found: dict[str, np.ndarray]) -> np.ndarray:
    whole, *beside = of.arrays
    parts = {each.of.suffix: found[each.name] for each in beside if each.of is not None}
    return float_values.decoded(found[whole.name], ("image", *whole.dims), parts, ("image", *beside[0].dims))


def by_hand(vector: np.ndarray, dtype: str) -> tuple[list[int], float, float]:
    """One vector, a number at a time, in float32 as the encoder's outputs are."""
    one = np.float32
    low = one(0) if dtype == "int8" else vector.min()
    size = np.abs(vector).max() if dtype == "int8" else vector.max() - low
    scale = size / one(127 if dtype == "int8" else 255)
    return [int(np.rint((x - low) / scale)) if scale else 0 for x in vector], float(scale), float(low)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("kind", list(TEXTS))
def test_every_vector_is_scaled_by_itself(kind: str, dtype: str) -> None:
    of = product(kind, dtype)
    values = np.random.default_rng(0).normal(2, 3, (3, *shape_of(kind))).astype(np.float32)
    found = stored(of, values)
    axis = of.channel_axis + 1
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        array.name: (array.dtype, (3, *array.shape)) for array in of.arrays
    }
    vectors, integers = (np.moveaxis(array, axis, -1) for array in (values, found["v"]))
    for at in np.ndindex(vectors.shape[:-1]):
        whole, scale, low = by_hand(vectors[at], dtype)
        assert integers[at].tolist() == whole
        assert found["v_scale"][at] == np.float32(scale)
        assert dtype == "int8" or found["v_offset"][at] == np.float32(low)
    assert np.abs(integers).max() == (127 if dtype == "int8" else 255)


@pytest.mark.parametrize(
    ("dtype", "vector", "whole", "scale"),
    [
        ("int8", [127, 0.5, 1.5, -2.5, -127], [127, 0, 2, -2, -127], 1.0),  # ties to even
        ("int8", [0, 0, 0, 0, 0], [0] * 5, 0.0),
        ("int8", [-0.0, 0, 0, 0, -254], [0, 0, 0, 0, -127], 2.0),
        ("uint8", [10, 10.5, 11.5, 12.5, 265], [0, 0, 2, 2, 255], 1.0),
        ("uint8", [7.25] * 5, [0] * 5, 0.0),
        ("uint8", [-255, 0, 0, 0, 0], [0, 255, 255, 255, 255], 1.0),
    ],
)
def test_ties_zeros_and_constants(dtype: str, vector: list[float], whole: list[int], scale: float) -> None:
    of = product("vector", dtype)
    values = np.array([vector], np.float32)
    found = stored(of, values)
    assert (found["v"][0].tolist(), float(found["v_scale"][0])) == (whole, scale)
    if not scale or dtype == "uint8":
        assert np.abs(decoded(of, found) - values).max() <= scale / 2


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_vector_without_values_is_nan_and_its_neighbours_are_not(dtype: str) -> None:
    of = product("probes", dtype)
    values = np.ones((1, 2, 5), np.float32)
    values[0, 1] = np.nan
    found = stored(of, values)
    assert np.isnan(found["v_scale"][0]).tolist() == [False, True]
    assert found["v"][0, 1].tolist() == [0] * 5
    assert np.isnan(decoded(of, found)).all(2).tolist() == [[False, True]]


SIZES = st.sampled_from([1e-45, 1e-38, 1e-30, 1e-6, 1.0, 3e4, 1e30, 1.5e38])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@given(
    values=arrays_of.arrays(np.float32, (3, 5), elements=st.floats(-1, 1, width=32, allow_subnormal=True)), size=SIZES
)
@settings(max_examples=300, deadline=None)
def test_no_value_is_more_than_half_a_step_away(dtype: str, values: np.ndarray, size: float) -> None:
    of = product("vector", dtype)
    values = values * np.float32(size)
    found = {name: array.astype(np.float64) for name, array in stored(of, values).items()}
    scale, offset = found["v_scale"][:, None], found.get("v_offset", np.zeros(3))[:, None]
    # The differences that uint8 scales are rounded to float32 once more.
    allowed = scale * (0.5 + ROUNDING)
    assert (np.abs(values.astype(np.float64) - (found["v"] * scale + offset)) <= allowed).all()
    assert np.isfinite(decoded(of, stored(of, values))).all()


def test_what_spans_more_than_a_float_is_refused() -> None:
    of = product("vector", "uint8")
    values = torch.tensor([[3e38, -3e38, 0, 0, 0], [1, 2, 3, 4, 5]])
    largest = quantization.largest_lost(of, values, quantization.stored(of, values))
    assert largest is not None
    assert largest.item() == pytest.approx(3e38)
    signed = product("vector", "int8")
    kept = quantization.stored(signed, values)
    assert quantization.largest_lost(signed, values, kept) is None
    assert float(kept["v_scale"][0]) == pytest.approx(3e38 / 127)
    tame = values[1:]
    assert quantization.largest_lost(of, tame, quantization.stored(of, tame)) == 0


def test_half_precision_is_widened_first() -> None:
    of = product("vector", "int8")
    half = torch.tensor([[60000.0, 1, 2, 3, 4]], dtype=torch.float16)
    for name, array in quantization.stored(of, half).items():
        assert torch.equal(array, quantization.stored(of, half.float())[name])


def neighbours(vectors: np.ndarray, at: int) -> set[int]:
    """The ten nearest vectors by cosine, by a plain loop."""
    near = [
        (float(each @ vectors[at]) / float(np.linalg.norm(each) * np.linalg.norm(vectors[at])), index)
        for index, each in enumerate(vectors)
        if index != at
    ]
    return {index for _, index in sorted(near)[-10:]}


def test_the_loss_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    exact = draw.normal(size=(60, 16)).astype(np.float64)
    kept = exact + draw.normal(scale=0.2, size=exact.shape)
    found = quantization.loss(exact, kept)
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(exact, kept, strict=True)]
    shared = [len(neighbours(exact, at) & neighbours(kept, at)) for at in range(60)]
    assert found == {
        "vectors": 60,
        "cosine_mean": pytest.approx(np.mean(cosines), abs=1e-8),
        "cosine_worst": pytest.approx(min(cosines), abs=1e-8),
        "recall_at_10": pytest.approx(sum(shared) / 600, abs=1e-6),
    }
    assert 0.3 < found["recall_at_10"] < 0.95


def test_equal_vectors_are_equally_near() -> None:
    exact = np.repeat(np.random.default_rng(1).normal(size=(3, 8)), 12, axis=0)
    assert quantization.loss(exact, exact.astype(np.float32))["recall_at_10"] == 1


@pytest.mark.parametrize(("count", "recall"), [(0, None), (20, None), (21, 1.0)])
def test_a_small_sample_has_no_recall(count: int, recall: float | None) -> None:
    exact = np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32)
    found = quantization.loss(exact, exact)
    assert (found["vectors"], found["recall_at_10"]) == (count, recall)
    assert (found["cosine_mean"] is None) == (count == 0)
    assert found["cosine_worst"] == (pytest.approx(1) if count else None)


def test_zeros_and_missing_vectors_do_not_count_as_lost() -> None:
    exact = np.zeros((3, 4), np.float32)
    exact[1] = np.nan
    exact[2] = 1
    found = quantization.loss(exact, exact)
    assert (found["vectors"], found["cosine_worst"]) == (2, pytest.approx(1))


def test_a_sample_is_spread_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "SAMPLE", 12)
    vector, maps = product("vector", "int8"), dataclasses.replace(product("map", "uint8"), name="v")
    assert quantization.Sample([vector], 24).rows["v"].tolist() == list(range(0, 24, 2))
    assert quantization.Sample([maps], 24).rows["v"].tolist() == [0, 12]  # two of six cells each
    assert quantization.Sample([vector], 5).rows["v"].tolist() == [0, 1, 2, 3, 4]
    assert quantization.Sample([product("vector", "float16")], 5).details({}, np.ones(5)) == {}


def test_the_sample_compares_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that came in any order, one of which was dropped later; a large map is thinned to the size of a sample."""
    monkeypatch.setattr(quantization, "SAMPLE", 4)
    of = product("map", "int8")
    draw = np.random.default_rng(0)
    exact = draw.normal(size=(6, 5, 2, 3)).astype(np.float32)
    found: dict[str, Any] = stored(of, exact)
    sample = quantization.Sample([of], 6)
    for at in (np.array([3, 4, 5]), np.array([0, 1, 2])):
        sample.keep(at, {name: exact[at[rows.numpy()]] for name, rows in sample.among(at).items()})
    status = np.ones(6, np.uint8)
    (measured,) = sample.details(found, status)["quantized"].values()
    cells = [np.moveaxis(array, 1, -1)[0].reshape(6, 5)[[0, 1, 3, 4]] for array in (exact, decoded(of, found))]
    assert measured == quantization.loss(*cells)
    status[0] = 2
    assert sample.details(found, status) == {"quantized": {}}


@pytest.mark.parametrize("beside", ["v_scale", "v_offset"])
def test_the_name_of_an_array_beside_is_taken(beside: str) -> None:
    specs = [products.parse_product(text) for text in ("v=none@uint8", f"{beside}=none")]
    with pytest.raises(
        errors.InputError, match=f"{beside!r} has the name of an array that 'v' stores beside its uint8"
    ):
        products.build_products(specs, [SlotSpec(name="s", shape=(5,))], point_count=0)
    products.build_products(
        [products.parse_product("v=none@float16"), specs[1]], [SlotSpec(name="s", shape=(5,))], point_count=0
    )

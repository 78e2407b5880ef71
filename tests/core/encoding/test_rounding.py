"""Rounding of reproducible runs: the nearest multiples of a step, which small errors do not change."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from genenc_core import spec
from genenc_core.encoding import products, rounding
from genenc_core.encoding.products import Product

TYPES = ("int8", "uint8", "float16", "float32")
CHANNELS = 24


def product(kind: str) -> Product:
    wanted = [products.parse_product(f"v=none@{kind}")]
    return products.build_products(wanted, [spec.SlotSpec(name="features", shape=(CHANNELS,))], point_count=0)[0]


def vectors() -> torch.Tensor:
    """Random ones of many sizes, and such whose values are boundaries, equal, or zero."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(300, CHANNELS, dtype=torch.float64, generator=generator)
    drawn[100:200] = drawn[100:200].relu()
    drawn *= 10 ** torch.linspace(-8, 6, 300, dtype=torch.float64)[:, None]
    halves = (torch.arange(CHANNELS, dtype=torch.float64) - 4.5).repeat(4, 1)
    halves[:, 0] = torch.tensor([127.0, 1024.0, 65536.0, 250.5])  # a step of 1 for each type
    equal, zero = torch.full((1, CHANNELS), 0.1, dtype=torch.float64), torch.zeros(1, CHANNELS, dtype=torch.float64)
    return torch.cat([drawn, halves, equal, zero])


def step_of(vector: np.ndarray, kind: str) -> Fraction:
    """The smallest number of few bits that is large enough."""
    values = [Fraction(value) for value in vector.tolist()]
    size = max(map(abs, values))
    wanted = {
        "int8": size / 127,
        "uint8": max((max(values) - min(values)) / 254, size / 2**15),
        "float16": size / 1024,
        "float32": size / 65536,
    }[kind]
    wanted = max(wanted, Fraction(1, 2**40))
    bits = 8 if kind in ("int8", "uint8") else 1
    unit = Fraction(2) ** (math.frexp(float(wanted))[1] - bits)
    return unit * math.ceil(wanted / unit - Fraction(1, 2**20))


def nearest(value: Fraction) -> int:
    below = math.floor(value)
    past = value - below - Fraction(1, 2)
    if abs(past) <= Fraction(1, 2**20):
        return below + below % 2
    return below + (past > 0)


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_the_nearest_multiples_of_the_smallest_step(kind: str) -> None:
    given = vectors()
    found = rounding.rounded(product(kind), given)
    for row, vector in enumerate(given.numpy()):
        step = step_of(vector, kind)
        assert Fraction(float(found.step[row])) == step
        whole = [nearest(Fraction(value) / step) for value in vector.tolist()]
        low = min(whole) if kind == "uint8" else 0
        kept = found.arrays["v"][row].double().numpy()
        if kind in ("int8", "uint8"):
            assert kept.tolist() == [each - low for each in whole]
            assert float(found.arrays["v_scale"][row]) == step
            if kind == "uint8":
                assert Fraction(float(found.arrays["v_offset"][row])) == low * step
        elif float(step) * 2**10 < 60000 and float(step) > 2**-24:
            assert kept.tolist() == [float(each * step) for each in whole]


@pytest.mark.parametrize("kind", TYPES)
def test_errors_below_a_quarter_of_the_limit_change_no_byte(kind: str) -> None:
    given = vectors()
    own = product(kind)
    base = rounding.rounded(own, given)
    assert rounding.by_rule(base)[0] > 0, "some values are boundaries"
    assert rounding.by_rule(base)[1] == 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        signs = torch.randint(0, 2, given.shape, generator=generator) * 2.0 - 1
        other = rounding.rounded(own, given + signs * base.step * rounding.TIE * 0.24)
        for name, array in base.arrays.items():
            assert array.numpy().tobytes() == other.arrays[name].numpy().tobytes()


@pytest.mark.parametrize("kind", TYPES)
def test_vectors_that_are_not_near_a_boundary_bear_the_error(kind: str) -> None:
    given, own = vectors()[:300], product(kind)
    base = rounding.rounded(own, given)
    error = base.step * 2e-3
    near = rounding.near(own, base, error)
    assert 0 < int(near.sum()) < len(near)
    generator = torch.Generator().manual_seed(2)
    changed = torch.zeros(len(given), dtype=torch.bool)
    for _ in range(60):
        signs = torch.randint(0, 2, given.shape, generator=generator) * 2.0 - 1
        other = rounding.rounded(own, given + signs * error)
        for name, array in base.arrays.items():
            changed |= (array != other.arrays[name]).reshape(len(given), -1).any(1)
    assert not (changed & ~near).any()
    assert (changed & near).any()


def test_missing_vectors_stay_missing() -> None:
    given = torch.full((2, CHANNELS), torch.nan, dtype=torch.float64)
    found = rounding.rounded(product("uint8"), given)
    assert torch.isnan(found.arrays["v_scale"]).all()
    assert torch.isnan(found.arrays["v_offset"]).all()
    assert not found.arrays["v"].any()
    assert not rounding.near(product("uint8"), found, torch.ones(2, 1)).any()
    assert torch.isnan(rounding.rounded(product("float16"), given).arrays["v"]).all()


def test_no_zero_has_a_sign() -> None:
    given = torch.full((1, CHANNELS), -1e-9, dtype=torch.float64)
    given[0, 0] = 1.0
    assert not torch.signbit(rounding.rounded(product("float32"), given).arrays["v"]).any()

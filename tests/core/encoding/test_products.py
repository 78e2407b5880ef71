"""Products: their text form, their shapes over an encoder's slots, and what is refused before anything runs."""

import pytest

from genenc_core import errors, spec
from genenc_core.encoding import products
from genenc_core.encoding.post_encoder import Step

SLOTS = (spec.SlotSpec(name="fine", shape=(4, 8, 8)), spec.SlotSpec(name="coarse", shape=(6, 4, 4)))

MAPS = products.ProductSpec(name="m", slot="coarse", steps=(Step("none"),), dtype="float16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f=global_avg_pool", products.ProductSpec(name="f", steps=(Step("global_avg_pool"),))),
        ("m = coarse : none @float16", MAPS),
        (
            "p=spatial_point(bilinear)",
            products.ProductSpec(name="p", steps=(Step("spatial_point", (("interpolation", "bilinear"),)),)),
        ),
        (
            "p=none+spatial_point(interpolation=cell)@float32",
            products.ProductSpec(name="p", steps=(Step("none"), Step("spatial_point", (("interpolation", "cell"),)))),
        ),
    ],
)
def test_text_form(text: str, expected: products.ProductSpec) -> None:
    found = products.parse_product(text)
    assert found == expected
    assert products.parse_product(str(found)) == found


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("global_avg_pool", "not of the form"),
        ("=none", "name ''"),
        ("a=", "not of the form"),
        ("status=none", "store uses that name"),
        ("9a=none", "use letters"),
        ("a/b=none", "use letters"),
        ("a=none@int8", "known: float16, float32"),
        ("a=none(", "not a module"),
        ("a=none++none", "not a module"),
    ],
)
def test_malformed_text_is_refused_with_the_form_or_reason(text: str, word: str) -> None:
    with pytest.raises(errors.InputError, match=word):
        products.parse_product(text)


def build(*texts: str, points: int = 0) -> tuple[products.Product, ...]:
    return products.build_products([products.parse_product(text) for text in texts], SLOTS, point_count=points)


def test_shapes_come_from_the_slots_and_axes_are_the_products_own() -> None:
    vector, maps, probes = build("v=global_avg_pool", "m=coarse:none", "p=spatial_point", points=3)
    assert (vector.slot, vector.signature.dims, vector.signature.shape) == ("fine", ("v_channel",), (4,))
    assert (maps.slot, maps.signature.dims, maps.signature.shape) == ("coarse", ("m_channel", "m_y", "m_x"), (6, 4, 4))
    assert (probes.signature.dims, probes.signature.shape) == (("point", "p_channel"), (3, 4))
    assert [item.needs_points for item in (vector, maps, probes)] == [False, False, True]


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        (("a=none", "a=global_avg_pool"), "given twice"),
        (("a=middle:none",), "it has fine, coarse"),
        (("a=global_avg_pool+spatial_point",), "needs a feature map"),
        (("a=max_pool",), "is unknown"),
    ],
)
def test_impossible_products_are_refused(texts: tuple[str, ...], word: str) -> None:
    with pytest.raises(errors.InputError, match=word):
        build(*texts, points=1)


def test_default_products() -> None:
    names = [str(item) for item in (*products.default_products(with_points=True), products.MAPS)]
    assert names == ["features=global_avg_pool@float32", "probes=spatial_point@float32", "maps=none@float16"]
    assert len(products.default_products(with_points=False)) == 1

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
        ("status=none", "reserved by the store"),
        ("9a=none", "use letters"),
        ("a/b=none", "use letters"),
        ("a=none@int4", "known: float32, float16, int8, uint8"),
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


def names(found: tuple[products.ProductSpec, ...]) -> list[str]:
    return [str(item) for item in found]


VIT = (
    spec.SlotSpec(name="features", shape=(8, 2, 3)),
    spec.SlotSpec(name="cls", shape=(8,)),
    spec.SlotSpec(name="register", shape=(4, 8)),
)
LAYERS = (
    spec.SlotSpec(name="blocks.5", shape=(8, 2, 3)),
    spec.SlotSpec(name="blocks.5.cls", shape=(8,)),
    spec.SlotSpec(name="stem-1", shape=(4, 4, 6)),
)


def test_one_map_is_stored_under_plain_names_whatever_stands_beside_it() -> None:
    for outputs in (SLOTS[:1], VIT):
        found = products.default_products(outputs, with_points=True)
        assert names(found[:2]) == [
            "features=global_avg_pool@float32",
            "probes=spatial_point(interpolation=cell)@float32",
        ]
        assert names(products.default_products(outputs, with_points=False)) == names(found[:1] + found[2:])
        assert names(products.map_products(outputs)) == ["maps=none@float16"]
    later = products.default_products(VIT[1:] + VIT[:1], with_points=False, dtype="float16")
    assert names(later)[0] == "features=features:global_avg_pool@float16"


def test_an_output_called_features_keeps_its_name_beside_a_map() -> None:
    slots = (spec.SlotSpec(name="map", shape=(8, 4, 4)), spec.SlotSpec(name="features", shape=(7,)))
    for order in (slots, slots[::-1]):
        found = products.default_products(order, with_points=True)
        stored = {product.name: product.slot or order[0].name for product in found}
        assert stored == {"features_map": "map", "probes": "map", "features": "features"}


def test_vectors_beside_maps_are_stored_and_token_lists_are_named() -> None:
    found = products.default_products(VIT, with_points=True)
    assert names(found[2:]) == ["cls=cls:none@float32"]
    built = products.build_products(found, VIT, point_count=1)
    assert products.not_stored(VIT, built) == "register [4, 8]"
    cls_token = products.build_products([products.parse_product("a=cls_token")], VIT, point_count=0)
    assert products.not_stored(VIT, cls_token) == "features [8, 2, 3], register [4, 8]"


@pytest.mark.parametrize("maps", [("map",), ("p3", "p4"), ("features",), ("features_0",)])
@pytest.mark.parametrize(
    ("slot", "name"),
    [
        ("vector", "vector"),
        ("blocks.5.cls", "blocks_5_cls"),
        ("status", "features_status"),
        ("probes", "features_probes"),
        ("3", "features_3"),
        ("a:b@float16=c+d", "a_b_float16_c_d"),
        ("features_p3", "features_p3"),
    ],
)
def test_vectors_have_the_names_of_their_slots(maps: tuple[str, ...], slot: str, name: str) -> None:
    outputs = (spec.SlotSpec(name=slot, shape=(5,)), *(spec.SlotSpec(name=each, shape=(4, 2, 2)) for each in maps))
    found = products.default_products(outputs, with_points=True)
    (vector,) = (item for item in found if item.slot == slot)
    assert vector.name == ("features_features_p3" if (slot, maps) == ("features_p3", ("p3", "p4")) else name)
    again = [products.parse_product(str(item)) for item in found]
    assert again == list(found)
    built = products.build_products(again, outputs, point_count=2)
    assert {item.slot for item in built} == {slot, *maps}
    assert products.not_stored(outputs, built) == ""


def test_names_of_axes_and_long_names_are_refused() -> None:
    for slots, said in (
        (("channel",), r"'features_channel' has the name of an axis of 'features'.*NAME=channel:none@float32'"),
        (("features_channel",), "'features_channel' has the name of an axis of 'features'"),
        (("probes_channel",), "'probes_channel' has the name of an axis of 'probes'"),
        (("affine",), "'affine' has the name of an axis of 'image_affine'"),
        (("a", "a_channel"), "'a_channel' has the name of an axis of 'a'"),
        (("x" * 193,), "has a name of 193 characters, too long"),
        (("x" * 192, "channels", "features_x"), None),
    ):
        vectors = (spec.SlotSpec(name=name, shape=(5,)) for name in slots)
        outputs = (spec.SlotSpec(name="map", shape=(4, 2, 2)), *vectors)
        built = products.build_products(products.default_products(outputs, with_points=True), outputs, point_count=1)
        if said is None:
            products.refuse_names(built)
            continue
        with pytest.raises(errors.InputError, match=said):
            products.refuse_names(built)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (("b.cls", "b_cls"), {"b.cls": "features_b_cls", "b_cls": "b_cls"}),
        (("b_map.x", "b_map_x"), {"b_map.x": "features_b_map_x", "b_map_x": "b_map_x"}),
        (("a b", "a_b"), {"a b": "features_a_b", "a_b": "a_b"}),
    ],
)
def test_name_is_of_the_slot_that_has_it(slots: tuple[str, ...], expected: dict[str, str], order: int) -> None:
    outputs = (
        spec.SlotSpec(name="b", shape=(4, 2, 2)),
        *(spec.SlotSpec(name=name, shape=(4,)) for name in slots[::order]),
    )
    found = products.default_products(outputs, with_points=True)
    assert {item.slot: item.name for item in found if item.slot in slots} == expected


def test_a_vector_does_not_have_the_name_of_a_map() -> None:
    outputs = (spec.SlotSpec(name="m_x", shape=(4, 2, 2)), spec.SlotSpec(name="m.x", shape=(4,)))
    assert [item.name for item in products.default_products(outputs, with_points=False)] == ["features", "features_m_x"]
    outputs = (*outputs, spec.SlotSpec(name="n", shape=(4, 2, 2)))
    with pytest.raises(errors.InputError, match=r"'m_x' and 'm.x' would both be stored as 'features_m_x'"):
        products.default_products(outputs, with_points=False)
    outputs = tuple(
        spec.SlotSpec(name=name, shape=shape)
        for name, shape in (("m", (4, 2, 2)), ("status", (4,)), ("features_status", (4,)))
    )
    with pytest.raises(errors.InputError, match="'status' and 'features_status' would both be stored"):
        products.default_products(outputs, with_points=False)


def test_an_output_that_cannot_be_stored_stops_nothing_else() -> None:
    outputs = (spec.SlotSpec(name="odd", shape=(2, 3, 4, 5)), *VIT)
    for outputs_seen in (outputs, (outputs[0], *VIT[1:])):
        built = products.build_products(
            products.default_products(outputs_seen, with_points=False), outputs_seen, point_count=0
        )
        assert "odd [2, 3, 4, 5]" in products.not_stored(outputs_seen, built)
    with pytest.raises(errors.InputError, match=r"'odd' has shape \[2, 3, 4, 5\]; only maps"):
        products.build_products(products.default_products(outputs[:1], with_points=False), outputs[:1], point_count=0)


def test_several_maps_are_stored_under_the_names_of_their_slots() -> None:
    found = products.default_products(LAYERS, with_points=True) + products.map_products(LAYERS)
    assert names(found) == [
        "features_blocks_5=blocks.5:global_avg_pool@float32",
        "features_stem_1=stem-1:global_avg_pool@float32",
        "probes_blocks_5=blocks.5:spatial_point(interpolation=cell)@float32",
        "probes_stem_1=stem-1:spatial_point(interpolation=cell)@float32",
        "blocks_5_cls=blocks.5.cls:none@float32",
        "maps_blocks_5=blocks.5:none@float16",
        "maps_stem_1=stem-1:none@float16",
    ]
    assert [products.parse_product(str(item)) for item in found] == list(found)
    assert len(products.build_products(found, LAYERS, point_count=1)) == 7


def test_an_encoder_without_maps_has_its_slots_stored_as_they_are() -> None:
    assert names(products.default_products(VIT[1:2], with_points=False)) == ["features=none@float32"]
    several = products.default_products(VIT[1:], with_points=False)
    assert names(several) == ["features_cls=cls:none@float32", "features_register=register:none@float32"]
    built = products.build_products(several, VIT[1:], point_count=0)
    assert [item.signature.dims for item in built] == [
        ("features_cls_channel",),
        ("features_register_token", "features_register_channel"),
    ]
    with pytest.raises(errors.InputError, match=r"no map to sample points from, only cls \[8\], register \[4, 8\]"):
        products.default_products(VIT[1:], with_points=True)
    with pytest.raises(errors.InputError, match="--maps: the encoder has no maps"):
        products.map_products(VIT[1:])


def test_slots_with_the_same_plain_name_are_refused() -> None:
    beside = (*VIT[:1], *(spec.SlotSpec(name=name, shape=(4,)) for name in ("a.b", "a_b", "a-b")))
    with pytest.raises(errors.InputError, match=r"'a.b' and 'a-b' would both be stored as 'features_a_b'"):
        products.default_products(beside, with_points=False)
    twins = tuple(spec.SlotSpec(name=name, shape=(4, 2, 2)) for name in ("a.b", "a_b"))
    with pytest.raises(errors.InputError, match=r"'a.b' and 'a_b' would both be stored as 'features_a_b'"):
        products.default_products(twins, with_points=False)


def over(text: str, outputs: tuple[spec.SlotSpec, ...]) -> products.Product:
    return products.build_products([products.parse_product(text)], outputs, point_count=1)[0]


@pytest.mark.parametrize("module", ["cls_token", "vit_cls", "cls_token(has_cls=true)"])
def test_the_class_token_of_a_map_is_the_slot_beside_it(module: str) -> None:
    assert over(f"v={module}", VIT).slot == "cls"
    assert over(f"v=cls:{module}", VIT).slot == "cls"
    found = over(f"v={module}+l2_normalize", LAYERS)
    assert (found.slot, found.signature.shape, len(found.pipeline.modules)) == ("blocks.5.cls", (8,), 2)


@pytest.mark.parametrize(
    ("text", "outputs", "words"),
    [
        ("v=cls_token", SLOTS, "no class token for 'fine'; its slots are fine, coarse"),
        ("v=stem-1:cls_token", LAYERS, "no class token for 'stem-1'"),
        ("v=cls_token(has_cls=false)", VIT, "has_cls=false means that there is no class token"),
        ("v=cls_token(has_cls=perhaps)", VIT, "neither true nor false"),
        ("v=none+cls_token", VIT, "must be the first module"),
        ("v=register:cls_token", VIT, r"cls_token\(has_cls=true\)"),
        ("v=register:vit_mean", VIT, r"vit_mean\(has_cls=true\) or vit_mean\(has_cls=false\)"),
        ("v=vit_mean(has_cls=true)", VIT, "has no class token"),
        ("v=cls:global_max_pool", VIT, "global_max_pool needs a feature map"),
        ("v=register:gem", VIT, "gem needs a feature map"),
        ("v=gem+gem", VIT, "gem needs a feature map"),
        ("v=gem(p=0)", VIT, "p='0' is not a number above 0"),
        ("v=gem(p=three)", VIT, "p='three' is not a number above 0"),
        ("v=gem(p=1,p=2)", VIT, "given twice"),
        ("v=cast", VIT, "one of float16, bfloat16, float32"),
        ("v=cast(int8)", VIT, "type 'int8' is unknown"),
    ],
)
def test_products_over_tokens_that_cannot_be(text: str, outputs: tuple[spec.SlotSpec, ...], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        over(text, outputs)


def test_token_slots_have_token_and_channel_axes() -> None:
    assert over("r=register:none", VIT).signature == products.post_encoder.Signature(
        dims=("r_token", "r_channel"), shape=(4, 8)
    )
    assert over("r=register:vit_max(has_cls=true)", VIT).signature.shape == (8,)

"""Registries: prefixes, order, one rule for names that are taken, and errors that help."""

import pytest
from torch import nn

from genenc_core import errors
from genenc_core.factory import decoders, registries, registry


class Mine(nn.Module):
    """A part that a user registers."""

    includes_head = True


@pytest.fixture
def own() -> registry.MultiSourceRegistry:
    """Return two sources that share one name."""
    first = registry.Registry({"alpha": lambda: "first alpha", "b_c": lambda: "first b_c"})
    second = registry.Registry({"alpha": lambda: "second alpha", "beta": lambda: "second beta"})
    return registry.MultiSourceRegistry("thing", {"one": first, "b": second}, aliases={"uno": "one"})


def test_prefix_chooses_the_source(own: registry.MultiSourceRegistry) -> None:
    assert own.build("alpha") == "first alpha"
    assert own.build("one_alpha") == own.build("uno_alpha") == "first alpha"
    assert own.build("b_alpha") == "second alpha"
    assert own.build("beta") == own.build("b_beta") == "second beta"


def test_name_that_starts_like_a_prefix_resolves(own: registry.MultiSourceRegistry) -> None:
    """Theirs: `b_c` means `c` of the source `b`, so the thing called b_c cannot be built without its prefix."""
    assert own.build("b_c") == "first b_c"


def test_container_protocol_of_registries(own: registry.MultiSourceRegistry) -> None:
    assert sorted(own) == ["b_alpha", "b_beta", "one_alpha", "one_b_c"]
    assert len(own) == 4
    assert "alpha" in own
    assert "b_beta" in own
    assert "one_beta" not in own
    assert 3 not in own
    assert own.find_registry("beta") is own["b_beta"]
    assert own.canonical("alpha") == "one_alpha"
    assert own.canonical("uno_b_c") == "one_b_c"


def test_unknown_names_offer_closest_names(own: registry.MultiSourceRegistry) -> None:
    for call in (own.build, own.find_registry, own.signature):
        with pytest.raises(errors.InputError, match=r"no thing 'betta' in one, b\. The closest names are: b_beta"):
            call("betta")
    with pytest.raises(errors.InputError, match="UNetDecoder"):
        registries.DECODER_REGISTRY.build("UnetDecoder", [3])
    with pytest.raises(errors.InputError, match="resnet18"):
        registries.BACKBONE_REGISTRY.build("timm_resnet_18")


def test_registered_name_is_refused_until_unregistered() -> None:
    """One rule for both kinds of duplicates; theirs overwrites silently."""
    names = registry.Registry({"Mine": Mine})
    with pytest.raises(errors.InputError, match="'Mine' is already registered"):
        names.register(Mine)
    names.unregister("Mine")
    assert names.register(Mine) is Mine
    assert names.includes_head("Mine")
    with pytest.raises(errors.InputError, match="not registered"):
        names.unregister("Other")
    with pytest.raises(errors.InputError, match="not a callable class or function"):
        names.register(3)  # type: ignore[arg-type]


def test_prefixes_are_words_and_unique(own: registry.MultiSourceRegistry) -> None:
    for prefix in ("one", "uno"):
        with pytest.raises(errors.InputError, match="already registered"):
            own.register_source(prefix, registry.Registry())
    for prefix in ("", "two_words"):
        with pytest.raises(errors.InputError, match="without underscore"):
            own.register_source(prefix, registry.Registry())


def test_constructor_errors_are_propagated() -> None:
    """Theirs: any KeyError in a constructor turns into "model isn't in the register"."""

    def broken() -> None:
        raise KeyError("inside")

    both = registry.MultiSourceRegistry("thing", {"a": registry.Registry({"x": broken}), "b": registry.Registry()})
    with pytest.raises(KeyError, match="inside"):
        both.build("x")


def test_users_register_at_run_time() -> None:
    for kind in (registries.BACKBONE_REGISTRY, registries.DECODER_REGISTRY, registries.NECK_REGISTRY):
        before = len(kind)
        kind.register(Mine)
        try:
            assert len(kind) == before + 1
            assert isinstance(kind.build("genenc_Mine"), Mine)
            assert "Mine" in kind
        finally:
            kind.unregister("Mine")
        assert "Mine" not in kind


def test_terratorch_prefix_is_an_alias() -> None:
    decoder = registries.DECODER_REGISTRY.build("terratorch_FCNDecoder", [8])
    assert isinstance(decoder, decoders.FCNDecoder)
    assert registries.NECK_REGISTRY.canonical("terratorch_SelectIndices") == "genenc_SelectIndices"
    assert registries.DECODER_REGISTRY.includes_head("LinearDecoder")
    assert not registries.DECODER_REGISTRY.includes_head("smp_Unet")


def test_unprefixed_backbone_is_from_timm() -> None:
    assert registries.BACKBONE_REGISTRY.canonical("resnet18") == "timm_resnet18"
    assert registries.BACKBONE_REGISTRY.canonical("vit_b_16") == "torchvision_vit_b_16"
    assert registries.BACKBONE_REGISTRY.canonical("a.b:c") == "python_a.b:c"
    assert {"timm_resnet18", "torchvision_resnet18"} <= set(registries.BACKBONE_REGISTRY)


def test_mmsegmentation_decoders_are_refused() -> None:
    for name in ("mmseg_UPerHead", "UPerHead"):
        with pytest.raises(errors.InputError, match=r"is from mmsegmentation.*UperNetDecoder"):
            registries.DECODER_REGISTRY.build(name, [3], num_classes=2)

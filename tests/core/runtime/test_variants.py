"""Variants: the cheapest cover of a batch, the same numbers whatever the pieces, and nothing loaded before its turn."""

import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genenc_core import errors, spec
from genenc_core.export import exporter
from genenc_core.models import resolve
from genenc_core.runtime import backends, loading
from genenc_core.runtime.formats import interface
from genenc_core.system import digests

SIZES = [1, 4, 6]


@pytest.fixture(scope="module")
def exported(tiny: resolve.BuiltEncoder, tmp_path_factory: pytest.TempPathFactory) -> exporter.ExportedModel:
    """The tiny model as TorchScript files for batches of 1, 4 and 6. Read only."""
    out = tmp_path_factory.mktemp("variants")
    (found,) = exporter.export_encoder(tiny, out=out, formats=["torchscript"], variants=[6, 1, 4], name="tiny")
    return found


def images(batch: int) -> torch.Tensor:
    return torch.rand((batch, 3, 32, 40), generator=torch.Generator().manual_seed(batch))


def by_trying(count: int, sizes: Sequence[int]) -> tuple[int, int]:
    """Return (images computed, calls) of the best cover, found by trying every multiset of at most `count` calls."""
    chosen = (
        combination
        for calls in range(1, count + 1)
        for combination in itertools.combinations_with_replacement(sizes, calls)
        if sum(combination) >= count
    )
    return min((sum(combination), len(combination)) for combination in chosen)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 9), sizes=st.sets(st.integers(1, 9), min_size=1, max_size=3))
def test_cover_minimises_images_then_calls(count: int, sizes: set[int]) -> None:
    found = loading.cover(count, sorted(sizes))
    assert set(found) <= sizes
    assert list(found) == sorted(found, reverse=True)
    assert (sum(found), len(found)) == by_trying(count, sorted(sizes))


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (8, [1, 8, 32], (8,)),
        (9, [1, 8, 32], (8, 1)),
        (40, [1, 8, 32], (32, 8)),
        (5, [4, 8], (8,)),  # 8 images either way: one call rather than two
        (9, [4, 8], (8, 4)),
        (3, [32], (32,)),
        (65, [32], (32, 32, 32)),
        (6, [2, 3], (3, 3)),
    ],
)
def test_covers(count: int, sizes: list[int], expected: tuple[int, ...]) -> None:
    assert loading.cover(count, sizes) == expected


def test_spec_lists_a_file_and_digest_per_batch(exported: exporter.ExportedModel) -> None:
    raw = spec.RuntimeModelSpec.from_json(exported.spec_path.read_text())
    assert sorted(path.name for path in exported.spec_path.parent.iterdir()) == [
        "tiny_torchscript_b1.pt",
        "tiny_torchscript_b4.pt",
        "tiny_torchscript_b6.pt",
        "tiny_torchscript_spec.json",
    ]
    assert raw.weights_variants == tuple(
        spec.WeightsVariant(path=f"tiny_torchscript_b{n}.pt", batch_size=n, label=f"batch {n}", backend="TorchScript")
        for n in SIZES
    )
    # WhiskerToolbox runs weights_path alone, with the batch that batch_mode tells.
    assert (raw.weights_path, raw.batch_mode) == ("tiny_torchscript_b1.pt", spec.BatchModeSpec(fixed=1))
    assert raw.resolved_batch_mode().describe() == "Dynamic(1, 6)"
    assert raw.genenc.artifact == raw.genenc.variants[0]
    for info, path, size in zip(raw.genenc.variants, exported.artifact_paths, SIZES, strict=True):
        assert (info.file, info.sha256) == (path.name, digests.ARTIFACT.hex_of_file(path))
        assert info.batches_compared == (size,)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6])
def test_variants_give_models_numbers(exported: exporter.ExportedModel, tiny: resolve.BuiltEncoder, batch: int) -> None:
    encoder = backends.load_encoder(exported.spec, device="cpu")
    runner = inspect.getclosurevars(encoder._run).nonlocals["run"]
    assert runner.loaded == ()
    found = encoder(images(batch))
    assert runner.loaded == tuple(sorted(set(loading.cover(batch, SIZES))))
    for tensor, expected in zip(found.values(), tiny.module(images(batch)), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    one_by_one = [encoder(images(batch)[row : row + 1])["deep"] for row in range(batch)]
    torch.testing.assert_close(torch.cat(one_by_one), found["deep"], rtol=1e-5, atol=1e-6)


def test_largest_variant_bounds_the_batch(exported: exporter.ExportedModel) -> None:
    encoder = backends.load_encoder(exported.spec, device="cpu")
    with pytest.raises(errors.EncoderError, match=r"Dynamic\(1, 6\), got 7"):
        encoder(images(7))


def test_padding_rows_are_removed() -> None:
    """A runner that adds the batch's mean to every row: its own rows still come out, in order."""
    calls: list[int] = []

    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(batch))
        return [batch.flatten(1)[:, :2]]

    loaded = interface.Loaded(run=run)
    runner = loading.VariantRunner({4: lambda: loaded, 6: lambda: loaded})
    given_images = images(9)
    (found,) = runner(given_images)
    assert calls == [6, 4]
    assert torch.equal(found, given_images.flatten(1)[:, :2])


@pytest.mark.parametrize("damage", ["changed", "missing", "other kind"])
def test_variants_are_checked_before_running(exported: exporter.ExportedModel, tmp_path: Path, damage: str) -> None:
    last = exported.spec.weights_variants[-1]
    path = tmp_path / "b6.pt"
    data = Path(last.path).read_bytes()
    if damage != "missing":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "changed" else b"<html>")
    changed = (*exported.spec.weights_variants[:-1], last.model_copy(update={"path": str(path)}))
    words = {"changed": "changed or damaged", "missing": "does not exist", "other kind": "not a TorchScript file"}
    with pytest.raises(errors.InputError, match=words[damage]):
        backends.load_encoder(exported.spec.model_copy(update={"weights_variants": changed}))


def test_foreign_variants_run_on_trust(exported: exporter.ExportedModel, tiny: resolve.BuiltEncoder) -> None:
    """As WhiskerToolbox writes them: no block of ours, backends by extension."""
    plain = tuple(
        spec.WeightsVariant(path=item.path, batch_size=item.batch_size) for item in exported.spec.weights_variants
    )
    update = {"genenc": None, "backend": None, "weights_path": None, "weights_variants": plain}
    foreign = exported.spec.model_copy(update=update)
    with pytest.raises(errors.InputError, match="--trust"):
        backends.load_encoder(foreign)
    encoder = backends.load_encoder(foreign, trust=True, device="cpu")
    assert encoder.backend == "torchscript"
    torch.testing.assert_close(encoder(images(5))["deep"], tiny.module(images(5))[0], rtol=1e-5, atol=1e-6)


def test_recurrent_only_wins_over_variants(exported: exporter.ExportedModel) -> None:
    recurrent = exported.spec.model_copy(update={"batch_mode": spec.BatchModeSpec(recurrent_only=True)})
    assert recurrent.resolved_batch_mode().describe() == "RecurrentOnly"


@pytest.mark.parametrize("wrong", [[0, 1], [2, 2]])
def test_impossible_variants_are_refused(tiny: resolve.BuiltEncoder, tmp_path: Path, wrong: list[int]) -> None:
    with pytest.raises(errors.InputError, match="variants"):
        exporter.export_encoder(tiny, out=tmp_path, formats=["torchscript"], variants=wrong)

"""Reproducible runs: which models and options can be, and how far float32 is from float64 before one begins."""

import io
import logging
import math
import time
from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image

from genenc_core import errors, spec, stored_arrays
from genenc_core.encoding import batch_size, engine, rounding
from genenc_core.encoding.products import Product
from genenc_core.encoding.reproducible import WIDEST, Margin, Reproducible
from genenc_core.images.decode import decode, geometry
from genenc_core.images.load.loader import ImageLoader
from genenc_core.models import weights
from genenc_core.run import model_cache, records
from genenc_core.run.decisions import KEY
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.runtime import backends, consistency, narrowing
from genenc_core.system import digests

LOGGER = logging.getLogger(__name__)
RULE: Final = 1
"""Version of `encoding.rounding`: another one stores other bytes."""
FLOAT64: Final = "provenance/float64.json"
"""Why a run goes on in float64 alone; absent otherwise."""
DRAWN, FIRST = 3, 5
"""Drawn images, and first ones of the run, that the margins are measured on."""
ILL: Final = 2.0**-12
"""Difference of float32 and float64, relative to the largest value, above which float64 may not be exact enough: it is
2^29 times smaller there, 2^-41 of the largest value, and `rounding.TIE` of the finest step is 2^-36."""
STEADY: Final = rounding.FINEST * rounding.TIE / 4
"""Difference of float64 in batches of different size, likewise, that `rounding` allows."""
WORTH: Final = 0.9
"""Time, relative to that of float64 alone, below which float32 comes first."""
_REMEDY = "leave --reproducible out"


def refuse(
    given: ExtractParameters, model: model_cache.ResolvedModel, wanted: Sequence[Product], used: spec.Preprocessing
) -> None:
    """Raise `InputError` for what cannot be the same anywhere: the option, the reason, what to do."""
    reasons = {
        f"--backend {model.backend}": model.backend != "eager"
        and "an artifact computes in float32 as it was exported: give the model by name",
        f"--precision {given.precision}": given.precision != "float32" and "it rounds more than can be computed again",
        "--compile": given.compile and "compiled code differs with the machine",
        f"--canvas {given.canvas}": given.canvas is not None
        and "tiles are weighted in float32, with functions that differ with the CPU",
        "--channels or --value-range": used.channels is not None
        and "images of other channels are resized in float32, which differs with the CPU",
        "a GPU": not model_cache.device_of(model, given.device).startswith("cpu")
        and "its bytes have not been compared with a CPU's: give --device cpu",
    }
    for what, why in reasons.items():
        if why:
            raise errors.InputError(f"--reproducible cannot be used with {what}: {why}, or {_REMEDY}")
    for product in wanted:
        if "cast(" in product.text:
            raise errors.InputError(
                f"--reproducible cannot be used with product {product.text!r}: cast rounds before the last step; leave "
                "the cast out (@float16 stores in 16 bits)"
            )


def identity(
    given: ExtractParameters,
    model: model_cache.ResolvedModel,
    wanted: Sequence[Product],
    used: spec.Preprocessing,
    *,
    new: bool,
) -> dict[str, object]:
    """Return the entry of a run's identity: the rule of rounding, a digest of all tensors in the model, and of pixels.

    The tensors are its weights, and what it computes by itself when it is built, or from its weights in narrower types
    than float64. `new`: also try what `refuse_unfit` does.

    Raises:
        InputError: the model or an option cannot be the same anywhere.
    """
    refuse(given, model, wanted, used)
    encoder = model_cache.CACHE.load(model, device="cpu", trust=given.trust)
    wide = encoder.in_float64()
    if new:
        refuse_unfit(encoder, wide)
    return {"rule": RULE, "tensors": _digest(encoder, wide), "pixels": _pixels(used)}


def _pixels(used: spec.Preprocessing) -> str:
    """Return a digest of the pixels that a drawn JPEG and PNG are decoded and resized to."""
    drawn = (consistency.images((375, 500), 1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    fitter, found = geometry.Fitter(used), digests.WEIGHTS.new()
    for form in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(drawn).save(file, form, quality=90)
        pixels, _ = fitter.fit(decode.decode_image(file.getvalue(), hint=fitter.hint))
        found.update(pixels.contiguous().numpy().tobytes())
    return str(found.hexdigest())


def _digest(encoder: backends.Encoder, wide: backends.Encoder) -> str:
    module = encoder.module
    assert module is not None
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    found = digests.WEIGHTS.new()
    found.update(weights.state_sha256(tensors).encode())
    for each in _constants(wide):
        found.update(each.digest.encode())
    return str(found.hexdigest())


def _constants(wide: backends.Encoder) -> Sequence[narrowing.Narrow]:
    """Return what a model computes in narrower types from its weights alone.

    Raises:
        InputError: it computes so from the image, too.
    """
    shown = consistency.images(wide.input_size, 2, channels=wide.channels).double()
    one = narrowing.watched(wide, shown[:1])[1]
    other = narrowing.watched(wide, shown[1:])[1] if one else []
    pairs = zip(one, other, strict=False)
    differs = next((left for left, right in pairs if left != right), None)
    if differs is not None or len(one) != len(other):
        where = differs.operation if differs else "some operations"
        raise errors.InputError(
            f"--reproducible needs a model that computes in float64 where its tensors are, but "
            f"{wide.spec.model_id!r} converts values of the image to a narrower type ({where}): {_REMEDY}, or change "
            "the model's .float() or .to(torch.float32) to the type of its input"
        )
    return one


def refuse_unfit(encoder: backends.Encoder, wide: backends.Encoder) -> None:
    """Compare a model in float32 and float64, alone and in a batch.

    Raises:
        InputError: its values depend on other images, or are so ill-conditioned that float64 does not determine them.
    """
    shown = consistency.images(encoder.input_size, 2, channels=encoder.channels)
    try:
        plain, exact, alone = encoder(shown), wide(shown.double()), wide(shown[:1].double())
    except errors.EncoderError:
        raise
    except Exception as error:  # user models may raise anything
        raise errors.InputError(
            f"--reproducible needs a model that computes in float64, but {encoder.spec.model_id!r} fails there: "
            f"{errors.reason(error)}; {_REMEDY}"
        ) from error
    for slot, value in exact.items():
        size = value.abs().max().clamp_min(1e-300)
        steady = float((value[:1] - alone[slot]).abs().max() / size)
        apart = float((value - plain[slot].double()).abs().max() / size)
        if not steady <= STEADY:
            raise errors.InputError(
                f"--reproducible: output {slot!r} of {encoder.spec.model_id!r} differs by {steady:.1e} in float64 in a "
                f"batch of two from alone (allowed: {STEADY:.1e}), so it depends on other images: {_REMEDY}"
            )
        if not apart <= ILL:
            raise errors.InputError(
                f"--reproducible: output {slot!r} of {encoder.spec.model_id!r} differs by {apart:.1e} between float32 "
                f"and float64 (allowed: {ILL:.1e}), so that float64 may not determine its values either: {_REMEDY}"
            )


def encoder_of(
    folder: RunFolder, encoder: backends.Encoder, wanted: Sequence[Product]
) -> tuple[backends.Encoder, Reproducible]:
    """Return the encoder that a reproducible run's engine calls, and what decides its values.

    It is the model in float64 unless its products are pooled integers, most images of which float32 can decide.

    Raises:
        StoreError: pixels, or the tensors that the model computes by itself, are not those of the run.
    """
    if encoder.device.type != "cpu":
        raise errors.InputError(
            f"this run is reproducible, so it is computed on the CPU, not on {encoder.device}: give --device cpu"
        )
    wide = encoder.in_float64()
    recorded = folder.identity[KEY]
    if _pixels(folder.preprocessing) != recorded["pixels"]:
        raise errors.StoreError(
            "images are decoded or resized to other pixels here than where this run was made, so its bytes would "
            f"differ: by other versions of torch or Pillow, or by the CPU ({torch.backends.cpu.get_cpu_capability()}; "
            "torch resizes otherwise without AVX2). Continue with the versions and a CPU like the first, or extract to "
            "another --out"
        )
    if _digest(encoder, wide) != recorded["tensors"]:
        raise errors.StoreError(
            "the model's tensors are not those this run was made with, although its weights are: it computes some when "
            "it is built, and this CPU or an installed package computes them otherwise, so that its bytes would "
            "differ. Continue on a machine like the first, or extract to another --out"
        )
    alone = Reproducible(wide, None)
    if folder.objects.size(FLOAT64) is not None or not all(map(_may_be_near, wanted)):
        return wide, alone
    trial = engine_for_trial(encoder, wide, wanted)
    try:
        margins, shares, seconds = _measured(trial, _drawn(encoder, wanted))
    finally:
        trial.close()
    expected = 1 - math.exp(-sum(shares.values()))
    near = seconds[0] + expected * seconds[1]
    LOGGER.info(
        "reproducible: float32 takes %.2f s for %d images, float64 %.2f s; %.0f %% of images expected near a boundary",
        *(seconds[0], DRAWN, seconds[1], 100 * expected),
    )
    if near > WORTH * seconds[1]:
        return wide, alone

    def exceeded(why: str) -> None:
        records.create_json(folder.objects, FLOAT64, {"why": why, "found": records.now()})

    return encoder, Reproducible(wide, margins, on_exceeded=exceeded)


def _may_be_near(product: Product) -> bool:
    return product.dtype in stored_arrays.QUANTIZED and not product.needs_regions


def engine_for_trial(encoder: backends.Encoder, wide: backends.Encoder, wanted: Sequence[Product]) -> engine.Engine:
    """Return an engine in float32 whose values can be had in float64, too."""
    sizer = batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), 1)
    widest = {product.name: WIDEST for product in wanted}
    return engine.Engine(encoder, wanted, sizer, reproducible=Reproducible(wide, widest))


def measure(runner: engine.Engine, images: ImageLoader, rows: int) -> None:
    """Widen the margins of an engine by the first images of its run."""
    if runner.reproducible is None or runner.reproducible.margins is None:
        return
    found: list[torch.Tensor] = []
    for batch in images.iter_batches(0, min(FIRST, rows)):
        found += [pixels for part in batch.parts for pixels in part.clone()]
        batch.release()
    if not found:
        return
    margins, _, _ = _measured(runner, _batch(torch.stack(found), runner.products))
    known = runner.reproducible.margins
    runner.reproducible.margins = {
        name: Margin(
            relative=max(margin.relative, known[name].relative), absolute=max(margin.absolute, known[name].absolute)
        )
        for name, margin in margins.items()
    }


def _measured(
    runner: engine.Engine, batch: engine.Batch
) -> tuple[dict[str, Margin], dict[str, float], tuple[float, float]]:
    """Return the margin of each product, values near a boundary per image, and the seconds of float32 and float64."""
    began = time.perf_counter()
    plain = runner.call(runner.plain_values, batch)
    between = time.perf_counter()
    exact, _ = runner.call(runner.exact_values, batch)
    seconds = between - began, time.perf_counter() - between
    margins, shares = {}, {}
    for product in runner.products:
        name, axis = product.name, product.channel_axis + 1
        margins[name] = margin = Margin.measured([(plain[name], exact[name])], axis)
        error, step = margin.of(plain[name], axis), rounding.rounded(product, plain[name]).step
        values = product.row_vectors * product.signature.shape[product.channel_axis]
        shares[name] = float((2 * error / step).nanmean()) * values
    return margins, shares, seconds


def _drawn(encoder: backends.Encoder, wanted: Sequence[Product]) -> engine.Batch:
    drawn = consistency.images(encoder.input_size, DRAWN, channels=encoder.channels)
    return _batch((drawn * 255).round().to(torch.uint8), wanted)


def _batch(pixels: torch.Tensor, wanted: Sequence[Product]) -> engine.Batch:
    """Return images with points anywhere in them."""
    count = max((each.signature.shape[0] for each in wanted if each.needs_points), default=0)
    height, width = pixels.shape[2:]
    anywhere = torch.rand((len(pixels), count, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return engine.Batch(
        pixels=pixels,
        points=anywhere * torch.tensor([width, height], dtype=torch.float64),
        valid=torch.ones(len(pixels), count, dtype=torch.bool),
    )

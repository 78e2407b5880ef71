"""Checks of a run's model on a few fixed images: deterministic, and unchanged since the run was made."""

import dataclasses
import sys
from collections.abc import Mapping

import numpy as np
import torch

from genenc_core import errors
from genenc_core.encoding import batch_size, encoder_threads, engine, tiling
from genenc_core.models import resolve, user_code
from genenc_core.run import model_cache, records
from genenc_core.run.folder import RunFolder
from genenc_core.runtime import backends, consistency, eager
from genenc_core.runtime.encoder import Encoder
from genenc_core.runtime.execution import Execution

_DRAWS = 8
_SHOWN = 3
"""Images used by `Watch`."""
_HALF = frozenset({"float16", "bfloat16"})


def try_model(model: model_cache.ResolvedModel, *, device: str, trust: bool) -> Mapping[str, object] | None:
    """Run a model on a few fixed images before anything is stored; return the `sketch` of its outputs.

    Returns None if two images do not fit in memory.

    Raises:
        InputError: it fails, or the features of an image depend on anything but the image.
    """
    source = model.spec.genenc.source if model.spec.genenc else None
    who = f"model {(source.name if source else model.spec.model_id)!r}"
    encoder = _plain(model, device=device, trust=trust)
    modules = frozenset(sys.modules)
    try:
        if not is_library_model(model):
            encoder_threads.run_in_thread(_refuse_unsteady, encoder, who, model.execution)
        fingerprint = encoder_threads.run_in_thread(sketch, encoder)
    except errors.InputError:
        raise
    except Exception as error:  # user models may raise anything
        if batch_size.is_out_of_memory(error):
            return None
        height, width = encoder.input_size
        raise errors.InputError(
            f"{who} fails at images of {height} x {width} pixels: {type(error).__name__}: {errors.reason(error)}."
        ) from error
    try:
        user_code.refuse_late_imports(model_cache.code_of(model.spec), _recorded_code(model), modules)
    except errors.EncoderError as error:
        raise errors.InputError(str(error)) from error
    return fingerprint


def refuse_unsteady(built: resolve.BuiltEncoder) -> None:
    """Run a user's model on a few fixed images before it is exported.

    Raises:
        InputError: the features of an image depend on anything but the image.
    """
    if built.kind not in eager.STATELESS:
        encoder = backends.eager_encoder(built)
        encoder_threads.run_in_thread(_refuse_unsteady, encoder, f"model {built.request.name!r}", Execution())


def _recorded_code(model: model_cache.ResolvedModel) -> Mapping[str, str] | None:
    return model.spec.genenc.code if model.spec.genenc else None


def is_library_model(model: model_cache.ResolvedModel) -> bool:
    """Return whether a model is an unmodified one of torchvision, timm or genenc."""
    source = model.spec.genenc.source if model.spec.genenc else None
    return model.backend == "eager" and source is not None and source.kind in eager.STATELESS


def _plain(model: model_cache.ResolvedModel, *, device: str, trust: bool) -> Encoder:
    """Return the encoder of a model without compilation, which would be needed for yet another batch size."""
    if not model.execution.compile:
        return model_cache.CACHE.load(model, device=device, trust=trust)
    plain = dataclasses.replace(model, execution=dataclasses.replace(model.execution, compile=False))
    return model_cache.CACHE.load(plain, device=device, trust=trust, keep=False)


def _refuse_unsteady(encoder: Encoder, who: str, execution: Execution) -> None:
    if encoder.batch_statistics:
        # Comparisons with a batch of one do not reveal it.
        raise errors.InputError(
            f"{who} normalises by the statistics of each batch instead of the learnt ones, {consistency.REMEDY}"
        )
    bounds = encoder.spec.resolved_batch_mode()
    limit = consistency.STEADY_IN_HALF if is_half(encoder, execution) else consistency.STEADY
    try:
        fault = consistency.fault(
            encoder,
            size=encoder.input_size,
            channels=encoder.channels,
            batch_min=bounds.min,
            batch_max=bounds.max or 0,
            device=encoder.device,
            limit=limit,
        )
    except (RuntimeError, MemoryError) as error:
        if batch_size.is_out_of_memory(error):
            return  # not required to fit two images
        raise
    if fault:
        raise errors.InputError(f"{who} {fault}, {consistency.REMEDY}")


def refuse_other_outputs(folder: RunFolder, model: model_cache.ResolvedModel, *, device: str, trust: bool) -> None:
    """Compare a run's encoder with its outputs when the run was made; no-op for runs that did not record them.

    Raises:
        StoreError: the outputs differ.
    """
    before = folder.outputs
    if before is None:
        return
    encoder = _plain(model, device=device, trust=trust)
    try:
        now = encoder_threads.run_in_thread(sketch, encoder)
    except errors.GenencError:
        raise
    except Exception as error:  # user models may raise anything
        if batch_size.is_out_of_memory(error):
            return
        raise errors.StoreError(
            f"the model fails on images that it encoded when this run was made: {type(error).__name__}: "
            f"{errors.reason(error)}"
        ) from error
    differences = changes(before, now, half=is_half(encoder, model.execution))
    if differences:
        raise errors.StoreError(
            "the model returns different outputs for the same images than when this run was made: "
            f"{'; '.join(differences)}. A file it reads, code it calls or an installed package has changed: restore "
            "it, or extract to another --out"
        )


class Watch:
    """Checks that a session's model keeps its outputs for an image, also in batches of the run's size.

    Models of torchvision, timm and genenc are stateless and not checked.
    """

    def __init__(
        self, folder: RunFolder, runner: engine.Engine, options: records.Options, *, modules: frozenset[str]
    ) -> None:
        """Check the first batches; `modules` are those imported before the session loaded its model.

        Raises:
            InputError: features of an image differ with the size of the batch.
        """
        model = model_cache.run_model(folder)
        self._code = model_cache.code_of(model.spec), _recorded_code(model), modules
        self._runner = runner
        self._encoder: Encoder | None = None
        if is_library_model(model):
            return
        device = model_cache.device_of(model, options.device)
        encoder = model_cache.CACHE.load(model, device=device, trust=options.trust)
        if runner.reproducible is not None and isinstance(runner.reproducible.encoder, Encoder):
            # Its values decide; where float32 does, it is compared with them as it goes.
            encoder = runner.reproducible.encoder
        sizer = (runner.encoder if isinstance(runner.encoder, tiling.TiledEncoder) else runner).sizer
        self._least = sizer.size if runner.fixed else model.spec.resolved_batch_mode().min
        self._limit = consistency.STEADY_IN_HALF if is_half(encoder, model.execution) else consistency.STEADY
        self._encoder = encoder
        shown = consistency.images(encoder.input_size, _SHOWN, channels=encoder.channels)
        self._shown = shown.to(encoder.device, encoder.dtype)
        try:
            self._before = runner.call(self._first, self._least)
            # Again, because the batch size search since the first comparison called the model many times.
            refuse_other_outputs(folder, model, device=device, trust=options.trust)
            difference = runner.call(self._place_that_differs, sizer.size)
        except (RuntimeError, MemoryError) as error:
            if not batch_size.is_out_of_memory(error):
                raise
            self._encoder = None  # batches will shrink, so that there is nothing to compare
            return
        if difference:
            raise errors.InputError(
                f"model {model.spec.model_id!r} gives different features for an image in a batch of {sizer.size} than "
                f"in one of {self._least} ({difference}), {consistency.REMEDY}"
            )

    def check(self) -> None:
        """Compare with the first batch again.

        Raises:
            EncoderError: the model has changed since, or imported code that the run has no digest of.
        """
        user_code.refuse_late_imports(*self._code)
        if self._encoder is None:
            return
        if difference := consistency.difference(self._before, self._runner.call(self._first, self._least), self._limit):
            raise errors.EncoderError(
                f"model {self._encoder.spec.model_id!r} gives different features for the same image than when the "
                f"session began ({difference}): it keeps state between calls, or a file that it reads has changed"
            )

    def _first(self, count: int, *, of: int = 0) -> dict[str, torch.Tensor]:
        """Return the outputs for one of the images, as the first in a batch of `count`."""
        return {slot: value[:1] for slot, value in self._batch(count, of).items()}

    def _place_that_differs(self, count: int) -> str | None:
        """Describe a position in a batch of `count` whose features differ from those in the smallest batch, if any."""
        if count == self._least:
            return None
        expected = [self._before, *(self._first(self._least, of=at) for at in range(1, _SHOWN))]
        together = self._batch(count, 0)
        places = ({slot: value[at : at + 1] for slot, value in together.items()} for at in range(count))
        differences = (
            consistency.difference(expected[at % _SHOWN], place, self._limit) for at, place in enumerate(places)
        )
        return next(filter(None, differences), None)

    def _batch(self, count: int, first: int) -> dict[str, torch.Tensor]:
        assert self._encoder is not None
        return self._encoder(self._shown[(torch.arange(count) + first) % _SHOWN].contiguous())


def is_half(encoder: Encoder, execution: Execution) -> bool:
    """Return whether an encoder computes in reduced precision, by its execution or its input type."""
    block = encoder.spec.genenc
    taken = block.input.dtype if block and block.input else "float32"
    return execution.precision != "float32" or taken in _HALF


def sketch(encoder: Encoder) -> dict[str, object]:
    """Return a fingerprint of the outputs for two fixed images, as JSON data: a few numbers per slot.

    They are sums of all values with fixed random signs, divided by the square root of the number of values, so that a
    difference anywhere in a slot shows up at about its root mean square.
    """
    least = encoder.spec.resolved_batch_mode().min
    slots: dict[str, list[dict[str, object]]] = {}
    for image in consistency.images(encoder.input_size, 2, channels=encoder.channels):
        batch = image.expand(least, -1, -1, -1).contiguous().to(encoder.device)
        for slot, value in encoder(batch).items():
            slots.setdefault(slot, []).append(_sums(value[0].detach().cpu().double().flatten().numpy()))
    return {"device": encoder.device.type, "slots": slots}


def changes(before: Mapping[str, object], now: Mapping[str, object], *, half: bool) -> list[str]:
    """Describe the differences between two sketches that exceed rounding, per slot; empty if there are none."""
    limit = allowed(same_device=before["device"] == now["device"], half=half)
    old, new = before["slots"], now["slots"]
    assert isinstance(old, Mapping)
    assert isinstance(new, Mapping)
    differences = [f"slot {name!r} is {'new' if name in new else 'gone'}" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        pairs = list(zip(old[name], new[name], strict=True))
        share = max(_share(one, other) for one, other in pairs)
        if any(one["values"] != other["values"] for one, other in pairs):
            differences.append(f"slot {name!r} has a different size")
        elif any(one["finite"] != other["finite"] for one, other in pairs):
            differences.append(f"slot {name!r} has a different number of NaN or infinite values")
        elif not share <= limit:
            differences.append(
                f"slot {name!r} by {100 * share:.2g} % of its root mean square (allowed: {100 * limit:.2g} %)"
            )
    return differences


def allowed(*, same_device: bool, half: bool) -> float:
    """Return the allowed difference of sketches: rounding, larger on another kind of device or in half precision."""
    return 2e-2 if half or not same_device else 1e-4


def _sums(values: np.ndarray) -> dict[str, object]:
    finite = np.isfinite(values)
    kept = np.where(finite, values, 0.0)
    draw = np.random.RandomState(len(values) % 2**32)
    sums = []
    for _ in range(_DRAWS):
        bits = np.unpackbits(np.frombuffer(draw.bytes(-(-len(kept) // 8)), dtype=np.uint8))[: len(kept)]
        sums.append(float((kept @ np.where(bits, 1.0, -1.0)) / max(len(kept), 1) ** 0.5))
    size = float(np.sqrt(np.mean(kept**2))) if len(kept) else 0.0
    return {"values": len(values), "finite": int(finite.sum()), "size": size, "sums": sums}


def _share(one: Mapping[str, object], other: Mapping[str, object]) -> float:
    if (one["values"], one["finite"]) != (other["values"], other["finite"]):
        return float("inf")
    before, now = np.asarray(one["sums"], dtype=float), np.asarray(other["sums"], dtype=float)
    size = max(float(str(one["size"])), float(str(other["size"])))
    return 0.0 if size == 0 else float(np.abs(before - now).max()) / size

"""A run's model on a few fixed images: refused when it is not steady, and compared with what it gave at first."""

import dataclasses
import sys
from collections.abc import Mapping

import numpy as np
import torch

from genenc_core import errors
from genenc_core.encoding import batching, calls, engine, tiling
from genenc_core.export import backends, behaviour, eager
from genenc_core.export.encoder import Encoder
from genenc_core.export.execution import Execution
from genenc_core.models import own_code, sources, wording
from genenc_core.run import encoders, records
from genenc_core.run.folder import RunFolder

_DRAWS = 8
_SHOWN = 3
"""Images of a session's watch."""
_HALF = frozenset({"float16", "bfloat16"})


def tried(model: encoders.ResolvedModel, *, device: str, trust: bool) -> Mapping[str, object] | None:
    """Run a model on a few fixed images before anything is stored; return the `sketch` of what it gives.

    None where two images do not fit in memory.

    Raises:
        InputError: it fails, or its features of an image depend on more than the image.
    """
    source = model.spec.genenc.source if model.spec.genenc else None
    who = f"model {(source.name if source else model.spec.model_id)!r}"
    encoder = _plain(model, device=device, trust=trust)
    modules = frozenset(sys.modules)
    try:
        if not is_known(model):
            calls.alone(_refuse_unsteady, encoder, who, model.execution)
        told = calls.alone(sketch, encoder)
    except errors.InputError:
        raise
    except Exception as error:  # somebody's model may raise anything
        if batching.is_out_of_memory(error):
            return None
        height, width = encoder.input_size
        raise errors.InputError(
            f"{who} fails at images of {height} x {width} pixels: {type(error).__name__}: {wording.reason(error)}."
        ) from error
    try:
        own_code.refuse_late(encoders.code_of(model.spec), _recorded_code(model), modules)
    except errors.EncoderError as error:
        raise errors.InputError(str(error)) from error
    return told


def refuse_unsteady(built: sources.BuiltEncoder) -> None:
    """Run somebody's own model on a few fixed images before it is exported.

    Raises:
        InputError: its features of an image depend on more than the image.
    """
    if built.kind not in eager.STATELESS:
        encoder = backends.eager_encoder(built)
        calls.alone(_refuse_unsteady, encoder, f"model {built.request.name!r}", Execution())


def _recorded_code(model: encoders.ResolvedModel) -> Mapping[str, str] | None:
    return model.spec.genenc.code if model.spec.genenc else None


def is_known(model: encoders.ResolvedModel) -> bool:
    """Tell whether a model is one of torchvision, timm or genenc, run as it is."""
    source = model.spec.genenc.source if model.spec.genenc else None
    return model.backend == "eager" and source is not None and source.kind in eager.STATELESS


def _plain(model: encoders.ResolvedModel, *, device: str, trust: bool) -> Encoder:
    """Return the encoder of a model, not compiled: a batch size of its own would have to be compiled for."""
    if not model.execution.compile:
        return encoders.CACHE.load(model, device=device, trust=trust)
    plain = dataclasses.replace(model, execution=dataclasses.replace(model.execution, compile=False))
    return encoders.CACHE.load(plain, device=device, trust=trust, keep=False)


def _refuse_unsteady(encoder: Encoder, who: str, execution: Execution) -> None:
    if encoder.batch_statistics:
        # Of a batch of one no comparison shows it.
        raise errors.InputError(
            f"{who} normalises by the mean and variance of each batch instead of those that it learnt, "
            f"{behaviour.REMEDY}"
        )
    bounds = encoder.spec.resolved_batch_mode()
    limit = behaviour.STEADY_IN_HALF if is_half(encoder, execution) else behaviour.STEADY
    try:
        told = behaviour.fault(
            encoder, size=encoder.input_size, least=bounds.min, most=bounds.max or 0, device=encoder.device, limit=limit
        )
    except (RuntimeError, MemoryError) as error:
        if batching.is_out_of_memory(error):
            return  # two images need not fit
        raise
    if told:
        raise errors.InputError(f"{who} {told}, {behaviour.REMEDY}")


def refuse_other_outputs(folder: RunFolder, model: encoders.ResolvedModel, *, device: str, trust: bool) -> None:
    """Compare a run's encoder with what it gave for the same images when the run was made; earlier runs hold nothing.

    Raises:
        StoreError: it gives something else.
    """
    made = folder.store.plan.attributes.get("genenc")
    before = made.get("outputs") if isinstance(made, Mapping) else None
    if not isinstance(before, Mapping):
        return
    encoder = _plain(model, device=device, trust=trust)
    try:
        now = calls.alone(sketch, encoder)
    except errors.GenencError:
        raise
    except Exception as error:  # somebody's model may raise anything
        if batching.is_out_of_memory(error):
            return
        raise errors.StoreError(
            f"the model fails on images that it took when this run was made: {type(error).__name__}: "
            f"{wording.reason(error)}"
        ) from error
    told = changes(before, now, half=is_half(encoder, model.execution))
    if told:
        raise errors.StoreError(
            f"the model returns different outputs for the same images than when this run was made: {'; '.join(told)}. "
            "A file that it reads, code that it calls or an installed package has changed. Put back what was there, or "
            "extract to another --out"
        )


class Watch:
    """Sees that a session's model goes on giving an image what it gave, and gives it in batches of the run's size.

    Models of torchvision, timm and genenc, which keep nothing between calls, are not watched.
    """

    def __init__(
        self, folder: RunFolder, runner: engine.Engine, options: records.Options, *, modules: frozenset[str]
    ) -> None:
        """Look at the first batches; `modules` are those that were imported before the session loaded its model.

        Raises:
            InputError: features of an image differ with the size of the batch.
        """
        model = encoders.run_model(folder)
        self._code = encoders.code_of(model.spec), _recorded_code(model), modules
        self._runner = runner
        self._encoder: Encoder | None = None
        if is_known(model):
            return
        device = encoders.device_of(model, options.device)
        encoder = encoders.CACHE.load(model, device=device, trust=options.trust)
        sizer = (runner.encoder if isinstance(runner.encoder, tiling.TiledEncoder) else runner).sizer
        self._least = sizer.size if runner.fixed else model.spec.resolved_batch_mode().min
        self._limit = behaviour.STEADY_IN_HALF if is_half(encoder, model.execution) else behaviour.STEADY
        self._encoder = encoder
        self._shown = behaviour.images(encoder.input_size, _SHOWN).to(encoder.device)
        try:
            self._before = runner.call(self._first, self._least)
            # Once more: since the session's first comparison a batch size was searched, with many calls.
            refuse_other_outputs(folder, model, device=device, trust=options.trust)
            told = runner.call(self._place_that_differs, sizer.size)
        except (RuntimeError, MemoryError) as error:
            if not batching.is_out_of_memory(error):
                raise
            self._encoder = None  # the batches get smaller, and with them what could be compared
            return
        if told:
            raise errors.InputError(
                f"model {model.spec.model_id!r} gives an image other features in a batch of {sizer.size} than in one "
                f"of {self._least} ({told}), {behaviour.REMEDY}"
            )

    def look(self) -> None:
        """Compare with the first batch.

        Raises:
            EncoderError: the model has changed since, or imported code that the run has no digest of.
        """
        own_code.refuse_late(*self._code)
        if self._encoder is None:
            return
        if told := behaviour.difference(self._before, self._runner.call(self._first, self._least), self._limit):
            raise errors.EncoderError(
                f"model {self._encoder.spec.model_id!r} gives the same image other features than when the session "
                f"began ({told}): it keeps something between calls, or a file that it reads has changed"
            )

    def _first(self, count: int, *, of: int = 0) -> dict[str, torch.Tensor]:
        """Return the outputs for one of the images, the first in a batch of `count`."""
        return {slot: value[:1] for slot, value in self._batch(count, of).items()}

    def _place_that_differs(self, count: int) -> str | None:
        """Return in words where in a batch of `count` an image gets other features than as the first of the least."""
        if count == self._least:
            return None
        alone = [self._before, *(self._first(self._least, of=at) for at in range(1, _SHOWN))]
        together = self._batch(count, 0)
        places = ({slot: value[at : at + 1] for slot, value in together.items()} for at in range(count))
        told = (behaviour.difference(alone[at % _SHOWN], place, self._limit) for at, place in enumerate(places))
        return next(filter(None, told), None)

    def _batch(self, count: int, first: int) -> dict[str, torch.Tensor]:
        assert self._encoder is not None
        return self._encoder(self._shown[(torch.arange(count) + first) % _SHOWN].contiguous())


def is_half(encoder: Encoder, execution: Execution) -> bool:
    """Tell whether an encoder computes with few digits: by how it is executed, or by the type that it takes."""
    block = encoder.spec.genenc
    taken = block.input.dtype if block and block.input else "float32"
    return execution.precision != "float32" or taken in _HALF


def sketch(encoder: Encoder) -> dict[str, object]:
    """Return what tells the outputs for two fixed images from others, as JSON data: a few numbers per slot.

    They are sums of all values with fixed random signs, divided by the root of how many values there are, so that a
    difference anywhere in a slot shows in them about as its root mean square.
    """
    least = encoder.spec.resolved_batch_mode().min
    told: dict[str, list[dict[str, object]]] = {}
    for image in behaviour.images(encoder.input_size, 2):
        batch = image.expand(least, -1, -1, -1).contiguous().to(encoder.device)
        for slot, value in encoder(batch).items():
            told.setdefault(slot, []).append(_sums(value[0].detach().cpu().double().flatten().numpy()))
    return {"device": encoder.device.type, "slots": told}


def changes(before: Mapping[str, object], now: Mapping[str, object], *, half: bool) -> list[str]:
    """Return how one sketch differs from another by more than rounding, slot by slot, in words; none: it does not."""
    limit = allowed(same_device=before["device"] == now["device"], half=half)
    old, new = before["slots"], now["slots"]
    assert isinstance(old, Mapping)
    assert isinstance(new, Mapping)
    told = [f"slot {name!r} is {'new' if name in new else 'gone'}" for name in sorted(old.keys() ^ new.keys())]
    for name in sorted(old.keys() & new.keys()):
        pairs = list(zip(old[name], new[name], strict=True))
        share = max(_share(one, other) for one, other in pairs)
        if any(one["values"] != other["values"] for one, other in pairs):
            told.append(f"slot {name!r} has another size")
        elif any(one["finite"] != other["finite"] for one, other in pairs):
            told.append(f"slot {name!r} holds more or fewer values that are NaN or infinite")
        elif not share <= limit:
            told.append(f"slot {name!r} by {100 * share:.2g} % of its root mean square (allowed: {100 * limit:.2g} %)")
    return told


def allowed(*, same_device: bool, half: bool) -> float:
    """Return how far sketches may differ: rounding on the same kind of device, or that of other kernels, too."""
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

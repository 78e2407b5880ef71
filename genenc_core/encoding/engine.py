"""Engine for one encoder and its products: batches of pixels in, reduced arrays out, several in flight."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from genenc_core import errors
from genenc_core.encoding import batch_size, encoder_threads, post_encoder, products, quantization
from genenc_core.encoding.device import Device, device_for
from genenc_core.encoding.region_batches import RegionBatch
from genenc_core.encoding.reproducible import Decided, Reproducible

_NOISE_IMAGES = 8
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """Stored values of one batch.

    `arrays` has `[B, ...]` per stored array of a product in its type, of regions `[R, ...]`; `exact` has float32
    `[n, ...]` per product that is stored as integers, of the batch's n sampled rows; `finite` bool `[B]` is false if an
    output was NaN or infinite; `sizes` are the batch sizes used; the times are those of this batch. `decided`: how
    the values of a reproducible run were.
    """

    arrays: dict[str, np.ndarray]
    finite: np.ndarray
    sizes: tuple[int, ...]
    copy_in_seconds: float
    encode_seconds: float
    reduce_seconds: float
    copy_out_seconds: float
    exact: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    decided: Decided | None = None


def sampled(of_images: Mapping[str, torch.Tensor], regions: RegionBatch | None) -> dict[str, torch.Tensor]:
    """Return which images, and which of their regions, are sampled, bool `[B]` or `[R]` by product."""
    of_regions = {} if regions is None else regions.sampled
    return {**of_images, **{name: torch.from_numpy(rows) for name, rows in of_regions.items()}}


def clone_if_aliased(value: torch.Tensor, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Clone a value if it shares memory with the model's outputs, which its next call may overwrite."""
    shared = {output.untyped_storage().data_ptr() for output in outputs.values()}
    return value.clone() if value.untyped_storage().data_ptr() in shared else value


def finite_rows(value: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return which images have only finite values `[B, ...]`, bool `[B]`; of points `[B, K, C]` `valid` ones count."""
    finite = torch.isfinite(value).flatten(1) if valid is None else torch.isfinite(value).all(2) | ~valid
    return finite.all(1)


def finite_images(value: torch.Tensor, regions: RegionBatch | None, count: int) -> torch.Tensor:
    """Return which of `count` images have only finite values `[R, ...]` in the regions that count, bool `[count]`."""
    wrong = torch.zeros(count, device=value.device)
    if regions is not None and len(regions):
        finite = torch.isfinite(value).flatten(1).all(1)
        valid, image = (torch.from_numpy(each).to(value.device) for each in (regions.valid, regions.image))
        wrong.index_add_(0, image, (valid & ~finite).float())
    return wrong == 0


def refuse_overflow(product: products.Product, largest: float) -> None:
    """Raise `InputError` if values of a product, the largest of which is given, became infinite as they were stored."""
    if largest > 0:
        holds = (
            "float16 (largest 65504)" if product.dtype == "float16" else f"the scale of {product.dtype} (largest 1e36)"
        )
        raise errors.InputError(
            f"product {product.name!r}: a value of {largest:.4g} overflows {holds}: "
            f"store it as --product '{product.text.partition('@')[0]}@float32', in another --out"
        )


def joined(parts: Sequence[Reduced]) -> Reduced:
    """Concatenate the parts of a batch."""
    return Reduced(
        arrays={name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        finite=np.concatenate([part.finite for part in parts]),
        sizes=tuple(size for part in parts for size in part.sizes),
        copy_in_seconds=sum(part.copy_in_seconds for part in parts),
        encode_seconds=sum(part.encode_seconds for part in parts),
        reduce_seconds=sum(part.reduce_seconds for part in parts),
        copy_out_seconds=sum(part.copy_out_seconds for part in parts),
        exact={name: np.concatenate([part.exact[name] for part in parts]) for name in parts[0].exact},
        decided=sum((part.decided for part in parts if part.decided is not None), start=Decided())
        if parts[0].decided is not None
        else None,
    )


class Encoder(Protocol):
    """A checked encoder: float32 `[B, 3, H, W]` in [0, 1] -> feature maps `[B, C, h, w]` per output slot."""

    @property
    def device(self) -> torch.device:
        """Device that it runs on."""
        ...

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of its input in pixels."""
        ...

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode one batch."""
        ...


@runtime_checkable
class Rebatching(Protocol):
    """An encoder that splits its input into its own batches."""

    @property
    def calls(self) -> tuple[int, ...]:
        """Sizes of the batches of the last call."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Decoded images for the encoder.

    Shapes: `pixels` `[B, C, H, W]`, uint8 or float32 in [0, 1]; `points` float64 `[B, K, 2]` in model pixels; `valid`
    bool `[B, K]`; `view` float64 `[B, 4]`: left, top, right, bottom in model pixels of the part that each image covers;
    None means all. `sampled` bool `[B]` per product: the rows whose exact values are returned, too. `regions` are those
    of these images; None in a batch that only tries the encoder.
    """

    pixels: torch.Tensor
    points: torch.Tensor
    valid: torch.Tensor
    view: torch.Tensor | None = None
    sampled: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    regions: RegionBatch | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, start: int, stop: int) -> "Batch":
        """Return images `start` to `stop`."""
        return Batch(
            pixels=self.pixels[start:stop],
            points=self.points[start:stop],
            valid=self.valid[start:stop],
            view=None if self.view is None else self.view[start:stop],
            sampled={name: rows[start:stop] for name, rows in self.sampled.items()},
            regions=None if self.regions is None else self.regions.part(start, stop),
        )

    def copy_of(self, at: int) -> "Batch":
        """Return a copy of one image as a batch, independent of the memory of the others."""
        one = slice(at, at + 1)
        return Batch(pixels=self.pixels[one].clone(), points=self.points[one].clone(), valid=self.valid[one].clone())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Launched:
    """A part of a batch in progress on the device: its future results, and marks of its stages."""

    values: dict[str, torch.Tensor]
    too_large: dict[str, torch.Tensor]
    exact: dict[str, torch.Tensor]
    finite: torch.Tensor
    decided: Decided | None
    sizes: tuple[int, ...]
    begun: Any
    arrived: Any
    started: Any
    encoded: Any
    reduced: Any
    returning: Any
    done: Any


class Ticket:
    """A submitted batch."""

    def __init__(
        self, launched: encoder_threads.Call[list[_Launched]], collect: Callable[[list[_Launched]], Reduced]
    ) -> None:
        self._launched = launched
        self._collect = collect

    def result(self) -> Reduced:
        """Wait for the batch and return its result, once; raises like `Engine.encode`."""
        return self._collect(self._launched.result())

    def cancel(self) -> None:
        """Cancel the batch, unless it was begun."""
        self._launched.cancel()


class Engine:
    """Runs batches through one encoder on its own threads; may be called from any number of threads.

    For a GPU it uses one thread, which launches work without waiting for the device: the next batch is copied in, and
    the previous one copied out, while one is computed.

    On the host, `side_by_side` batches are computed at the same time, each on one core. Cores that share a batch wait
    for each other after every layer, also for one that is busy decoding; and the result of a single core is
    bit-identical whatever the number of cores.
    """

    def __init__(
        self,
        encoder: Encoder,
        wanted: Sequence[products.Product],
        sizer: batch_size.BatchSizer,
        device: Device | None = None,
        *,
        fixed: bool = False,
        side_by_side: int = 1,
        reproducible: Reproducible | None = None,
    ) -> None:
        """Start the engine's threads.

        `fixed`: pad every batch to the current size, for an encoder with a fixed batch size. `side_by_side` above 1
        requires an encoder that may be called from several threads at once. `reproducible`: what is stored is decided
        by it.
        """
        self.encoder = encoder
        self.products = tuple(wanted)
        self.sizer = sizer
        self.fixed = fixed
        self.witness: Batch | None = None
        """One image that was encoded successfully; if it fails later, the encoder is at fault."""
        self.device = device or device_for(encoder.device)
        self.side_by_side = side_by_side
        self.reproducible = reproducible
        self._threads = encoder_threads.CallThreads(encoder.device, side_by_side)
        self._compute_lock = encoder_threads.ComputeLock()

    @property
    def in_flight(self) -> int:
        """Number of batches that one shard may have in flight: one copied in, one computed, one copied out.

        Side by side, two per core, since a late batch holds up the results of those after it.
        """
        return 3 if self.side_by_side == 1 else 2 * self.side_by_side + 1

    def close(self) -> None:
        """Cancel all batches, and stop each thread after the one it has begun."""
        self._threads.close()

    def call(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """Run `work` on a thread of the engine and return its result."""
        return self._threads.submit(work, *arguments).result()

    def submit(self, batch: Batch) -> Ticket:
        """Queue one batch; errors are raised by its ticket."""
        return Ticket(self._threads.submit(self._launch_all, batch), self._collect)

    def encode(self, batch: Batch) -> Reduced:
        """Encode and reduce one batch, in smaller parts if memory runs out.

        Raises:
            EncoderError: the encoder broke its contract, or does not fit in memory at its smallest batch.
            InputError: a value overflows the stored type.
            Stopped: the engine was closed.
        """
        return self.submit(batch).result()

    def trial(self, size: int, point_count: int) -> None:
        """Encode and discard `side_by_side` batches of `size` noise images, for `batch_size.find_size` to measure.

        Raises:
            RuntimeError, MemoryError: out of memory; other exceptions of the encoder propagate as well.
        """
        height, width = self.encoder.input_size
        # A few images, repeated: generating all of them would add to the measured time.
        noise = torch.randint(
            0, 256, (min(size, _NOISE_IMAGES), channels_of(self.encoder), height, width), dtype=torch.uint8
        )
        repeated = [noise] * (size // len(noise)) + [noise[: size % len(noise)]]
        points = torch.zeros(size, point_count, 2, dtype=torch.float64)
        valid = torch.ones(size, point_count, dtype=torch.bool)
        pixels = self.device.join(repeated)
        batch = Batch(pixels=pixels, points=points, valid=valid)
        begun = [self._threads.submit(self._launch, batch) for _ in range(self.side_by_side)]
        with contextlib.ExitStack() as ended:
            # Wait for all of them even if one fails, so that none overlaps with the next measurement.
            for each in begun:
                ended.callback(self._end_trial, each)

    def _end_trial(self, begun: encoder_threads.Call[_Launched]) -> None:
        # Features of noise may overflow the stored type.
        with contextlib.suppress(errors.InputError):
            self._collect([begun.result()])

    def _launch_all(self, batch: Batch) -> list[_Launched]:
        exclusive = False

        def launch(start: int, stop: int) -> _Launched:
            with self._compute_lock.hold(exclusive=exclusive):
                return self._launch(batch.part(start, stop))

        def retry(count: int, error: BaseException) -> bool:
            nonlocal exclusive
            if exclusive or self.side_by_side == 1 or count > self.sizer.bounds.min:
                self.sizer.out_of_memory(count, error)
            # Retry alone first: memory used by concurrent batches does not mean that this one is too large.
            exclusive = self.side_by_side > 1
            return True

        parts = batch_size.in_parts(len(batch), self.sizer, launch, retry=retry, release=self.device.release)
        return [launched for _, _, launched in parts]

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> _Launched:
        device, count = self.device, len(batch)
        with device.stage("copy_in"):
            begun = device.mark()
            pixels, points, valid = (device.upload(item) for item in (batch.pixels, batch.points, batch.valid))
            view = None if batch.view is None else device.upload(batch.view)
            wanted = sampled(batch.sampled, batch.regions)
            kept = {name: device.upload(rows.nonzero()[:, 0]) for name, rows in wanted.items()}
            arrived = device.mark()
        with device.stage("compute"):
            device.follow(arrived, pixels, points, valid, *(() if view is None else (view,)), *kept.values())
            started = device.mark()
            least = self.sizer.size if self.fixed else self.sizer.bounds.min
            images = unit_range(padded(pixels, least), getattr(self.encoder, "dtype", torch.float32))
            outputs = self.encoder(images)
            encoded = device.mark()
            values, finite = self._reduce(outputs, points, valid, view, batch.regions, count)
            arrays, decided = self._stored(batch, values, finite)
            stored = {name: clone_if_aliased(array, outputs) for name, array in arrays.items()}
            too_large: dict[str, torch.Tensor] = {}
            for product in self.products:
                largest = quantization.largest_lost(product, values[product.name], arrays)
                too_large |= {} if largest is None else {product.name: largest}
            exact = {name: values[name].index_select(0, rows).float() for name, rows in kept.items()}
            reduced = device.mark()
        with device.stage("copy_out"):
            device.follow(reduced, finite, *stored.values(), *too_large.values(), *exact.values())
            returning = device.mark()
            return _Launched(
                values={name: device.download(stored[name]) for name in stored},
                too_large={name: device.download(too_large[name]) for name in too_large},
                exact={name: device.download(exact[name]) for name in exact},
                finite=device.download(finite),
                decided=decided,
                sizes=self.encoder.calls if isinstance(self.encoder, Rebatching) else (len(images),),
                begun=begun,
                arrived=arrived,
                started=started,
                encoded=encoded,
                reduced=reduced,
                returning=returning,
                done=device.mark(),
            )

    def _stored(
        self, batch: Batch, values: Mapping[str, torch.Tensor], finite: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], Decided | None]:
        """Return what is stored of a batch's values, and how it was decided; `finite` may be updated."""
        if self.reproducible is None:
            arrays: dict[str, torch.Tensor] = {}
            for product in self.products:
                arrays |= quantization.stored(product, values[product.name])
            return arrays, None
        return self.reproducible.stored(
            self.products, values, finite, lambda row: self.exact_values(batch.part(row, row + 1))
        )

    @torch.inference_mode()
    def exact_values(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return a batch's values of all products in float64, and which images' are finite; for reproducible runs."""
        assert self.reproducible is not None
        outputs = self.reproducible.encoder(unit_range(batch.pixels, torch.float64))
        return self._reduce(outputs, batch.points, batch.valid, batch.view, batch.regions, len(batch))

    @torch.inference_mode()
    def plain_values(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return a batch's values of all products as the engine's encoder computes them."""
        outputs = self.encoder(unit_range(batch.pixels))
        return self._reduce(outputs, batch.points, batch.valid, batch.view, batch.regions, len(batch))[0]

    def _reduce(
        self,
        outputs: dict[str, torch.Tensor],
        points: torch.Tensor,
        valid: torch.Tensor,
        view: torch.Tensor | None,
        regions: RegionBatch | None,
        count: int,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return every product's value, and which images' values are finite, bool `[B]`."""
        where = post_encoder.PointBatch(
            xy=points, valid=valid, input_size=self.encoder.input_size, view=view, regions=regions
        )
        values: dict[str, torch.Tensor] = {}
        finite = torch.ones(count, dtype=torch.bool, device=self.encoder.device)
        for product in self.products:
            points_on_map = dataclasses.replace(where, cells=product.cells)
            value = product.pipeline.apply(outputs[product.slot][:count], points_on_map)
            # What float32 cannot hold is not finite, in whatever type it was computed.
            narrow = value.float() if value.dtype == torch.float64 else value
            if product.needs_regions:
                finite &= finite_images(narrow, regions, count)
            else:
                finite &= finite_rows(narrow, valid if product.needs_points else None)
            values[product.name] = value
        return values, finite

    def _collect(self, launched: list[_Launched]) -> Reduced:
        parts = [self._collected(item) for item in launched]
        return parts[0] if len(parts) == 1 else joined(parts)

    def _collected(self, item: _Launched) -> Reduced:
        self.device.wait(item.done)
        for product in self.products:
            largest = item.too_large.get(product.name)
            if largest is not None:
                refuse_overflow(product, largest.item())
        return Reduced(
            arrays={name: value.numpy() for name, value in item.values.items()},
            exact={name: value.numpy() for name, value in item.exact.items()},
            finite=item.finite.numpy(),
            decided=item.decided,
            sizes=item.sizes,
            copy_in_seconds=self.device.seconds(item.begun, item.arrived),
            encode_seconds=self.device.seconds(item.started, item.encoded),
            reduce_seconds=self.device.seconds(item.encoded, item.reduced),
            copy_out_seconds=self.device.seconds(item.returning, item.done),
        )


def unit_range(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return uint8 pixels as floats in [0, 1], and float32 ones as a copy, which an encoder may overwrite."""
    return pixels.to(dtype).div_(255.0) if pixels.dtype == torch.uint8 else pixels.to(dtype, copy=True)


def channels_of(encoder: object) -> int:
    """Return the channels that an encoder takes; one of RGB need not say so."""
    return int(getattr(encoder, "channels", 3))


def padded(pixels: torch.Tensor, smallest: int) -> torch.Tensor:
    """Pad to at least `smallest` images by repeating the last one; the surplus is dropped after encoding."""
    missing = smallest - len(pixels)
    return pixels if missing <= 0 else torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])

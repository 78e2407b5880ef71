"""One encoder and its products: uint8 batches in, reduced arrays out, several batches in flight on one device."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from genenc_core import errors
from genenc_core.encoding import batching, calls, post_encoder, products
from genenc_core.encoding.device import Device, device_for
from genenc_core.encoding.reduced import Reduced, apart, finite_rows, joined, largest_lost

_DRAWN = 8
_Result = TypeVar("_Result")


class Encoder(Protocol):
    """A guarded encoder: float32 `[B, 3, H, W]` in [0, 1] -> feature maps `[B, C, h, w]` per output slot."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
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
    """An encoder that makes batches of its own of what it is given."""

    @property
    def calls(self) -> tuple[int, ...]:
        """Sizes of the batches of the last call."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Decoded images on their way to the encoder.

    Shapes: `pixels` uint8 `[B, 3, H, W]`; `points` float64 `[B, K, 2]` in model pixels; `valid` bool `[B, K]`;
    `view` float64 `[B, 4]`: left, top, right, bottom in model pixels of what each image fills; None: all.
    """

    pixels: torch.Tensor
    points: torch.Tensor
    valid: torch.Tensor
    view: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, start: int, stop: int) -> "Batch":
        """Return the images `start` to `stop`."""
        return Batch(
            pixels=self.pixels[start:stop],
            points=self.points[start:stop],
            valid=self.valid[start:stop],
            view=None if self.view is None else self.view[start:stop],
        )

    def copy_of(self, at: int) -> "Batch":
        """Return a batch of one image that keeps none of the others in memory."""
        one = slice(at, at + 1)
        return Batch(pixels=self.pixels[one].clone(), points=self.points[one].clone(), valid=self.valid[one].clone())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Launched:
    """A part of a batch that the device has been given: where its results will be, and marks of its stages."""

    values: dict[str, torch.Tensor]
    too_large: dict[str, torch.Tensor]
    finite: torch.Tensor
    sizes: tuple[int, ...]
    started: Any
    encoded: Any
    reduced: Any
    done: Any


class Ticket:
    """A batch on its way through an engine."""

    def __init__(self, launched: calls.Call[list[_Launched]], collect: Callable[[list[_Launched]], Reduced]) -> None:
        self._launched = launched
        self._collect = collect

    def result(self) -> Reduced:
        """Wait for the batch and return it, once; raises as `Engine.encode`."""
        return self._collect(self._launched.result())

    def cancel(self) -> None:
        """Give the batch up, unless it was begun."""
        self._launched.cancel()


class Engine:
    """Runs batches through one encoder on threads of its own, whatever the number of threads that ask.

    For a device of its own it is one thread, which launches; it waits for nothing that the device does. The next batch
    is copied in, and the last one copied out, while one is computed.

    On the host, `side_by_side` batches may be computed at once, each on one core. Cores that share a batch wait for one
    another after each layer: for a decoding thread among them, too. And a batch that one core computes has the same
    last bits whatever the number of cores.
    """

    def __init__(
        self,
        encoder: Encoder,
        wanted: Sequence[products.Product],
        sizer: batching.BatchSizer,
        device: Device | None = None,
        *,
        fixed: bool = False,
        side_by_side: int = 1,
    ) -> None:
        """Begin the engine's threads.

        `fixed`: every batch is filled up to the size in force, for an encoder that is made for one size. `side_by_side`
        above 1: for an encoder that may be called from several threads at once.
        """
        self.encoder = encoder
        self.products = tuple(wanted)
        self.sizer = sizer
        self.fixed = fixed
        self.witness: Batch | None = None
        """One image that was encoded well: an encoder that fails for it later has turned wrong."""
        self.device = device or device_for(encoder.device)
        self.side_by_side = side_by_side
        self._threads = calls.CallThreads(encoder.device, side_by_side)
        self._room = calls.Room()

    @property
    def in_flight(self) -> int:
        """How many batches one shard may have on their way: one copied in, one computed, one copied out.

        Side by side, two for each: one that is late holds up the results of those after it.
        """
        return 3 if self.side_by_side == 1 else 2 * self.side_by_side + 1

    def close(self) -> None:
        """Give up all batches, and end each thread after the one that it began."""
        self._threads.close()

    def call(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        """Return what `work` returns on a thread of the engine's."""
        return self._threads.submit(work, *arguments).result()

    def submit(self, batch: Batch) -> Ticket:
        """Queue one batch; what is wrong with it is told by the ticket."""
        return Ticket(self._threads.submit(self._launch_all, batch), self._collect)

    def encode(self, batch: Batch) -> Reduced:
        """Encode and reduce one batch, in smaller parts when memory runs out.

        Raises:
            EncoderError: the encoder broke its contract, or does not fit in memory at its smallest batch.
            InputError: a value does not fit the stored type.
            Stopped: the engine was closed.
        """
        return self.submit(batch).result()

    def trial(self, size: int, point_count: int) -> None:
        """Encode and throw away batches of `size` images of noise, as many as are computed side by side.

        It is what `size_search.find_size` measures.

        Raises:
            RuntimeError, MemoryError: for want of memory; whatever else the encoder raises is passed on, too.
        """
        height, width = self.encoder.input_size
        # The same few again: to draw every image would take its share of the time that is measured.
        noise = torch.randint(0, 256, (min(size, _DRAWN), 3, height, width), dtype=torch.uint8)
        repeated = [noise] * (size // len(noise)) + [noise[: size % len(noise)]]
        points = torch.zeros(size, point_count, 2, dtype=torch.float64)
        valid = torch.ones(size, point_count, dtype=torch.bool)
        pixels = self.device.join(repeated)
        batch = Batch(pixels=pixels, points=points, valid=valid)
        begun = [self._threads.submit(self._launch, batch) for _ in range(self.side_by_side)]
        with contextlib.ExitStack() as ended:
            # All of them, also when one fails: what is measured next is not to run beside them.
            for each in begun:
                ended.callback(self._end_trial, each)

    def _end_trial(self, begun: calls.Call[_Launched]) -> None:
        # What noise gives need not fit the stored type.
        with contextlib.suppress(errors.InputError):
            self._collect([begun.result()])

    def _launch_all(self, batch: Batch) -> list[_Launched]:
        parts: list[_Launched] = []
        start, alone = 0, False
        while start < len(batch):
            stop = min(start + self.sizer.size, len(batch))
            launched = self._try(batch.part(start, stop), alone=alone)
            if launched is None:
                # Only now is the traceback gone that kept the failed batch in memory.
                self.device.release()
                # The memory of others is not to be taken for want of more for this one.
                alone = self.side_by_side > 1
                continue
            parts.append(launched)
            start = stop
        return parts

    def _try(self, batch: Batch, *, alone: bool) -> _Launched | None:
        """Return the batch on its way, or None when it did not fit and a smaller one should be tried, or it alone."""
        try:
            with self._room.taken(alone=alone):
                return self._launch(batch)
        except (RuntimeError, MemoryError) as error:
            if not batching.is_out_of_memory(error):
                raise
            if alone or self.side_by_side == 1 or len(batch) > self.sizer.bounds.min:
                self.sizer.out_of_memory(len(batch), error)
            return None

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> _Launched:
        device, count = self.device, len(batch)
        with device.stage("copy_in"):
            pixels, points, valid = (device.upload(item) for item in (batch.pixels, batch.points, batch.valid))
            view = None if batch.view is None else device.upload(batch.view)
            arrived = device.mark()
        with device.stage("compute"):
            device.follow(arrived, pixels, points, valid, *(() if view is None else (view,)))
            started = device.mark()
            images = padded(pixels, self.sizer.size if self.fixed else self.sizer.bounds.min).float().div_(255.0)
            outputs = self.encoder(images)
            encoded = device.mark()
            values, finite = self._reduce(outputs, points, valid, view, count)
            stored = {name: apart(value.to(getattr(torch, kind)), outputs) for name, (value, kind) in values.items()}
            too_large = {
                name: largest_lost(value, stored[name])
                for name, (value, kind) in values.items()
                if kind == "float16" and value.dtype != torch.float16
            }
            reduced = device.mark()
        with device.stage("copy_out"):
            device.follow(reduced, finite, *stored.values(), *too_large.values())
            return _Launched(
                values={name: device.download(stored[name]) for name in stored},
                too_large={name: device.download(too_large[name]) for name in too_large},
                finite=device.download(finite),
                sizes=self.encoder.calls if isinstance(self.encoder, Rebatching) else (len(images),),
                started=started,
                encoded=encoded,
                reduced=reduced,
                done=device.mark(),
            )

    def _reduce(
        self,
        outputs: dict[str, torch.Tensor],
        points: torch.Tensor,
        valid: torch.Tensor,
        view: torch.Tensor | None,
        count: int,
    ) -> tuple[dict[str, tuple[torch.Tensor, str]], torch.Tensor]:
        """Return every product's value and stored type, and which images' values are finite, bool `[B]`."""
        where = post_encoder.PointBatch(xy=points, valid=valid, input_size=self.encoder.input_size, view=view)
        values: dict[str, tuple[torch.Tensor, str]] = {}
        finite = torch.ones(count, dtype=torch.bool, device=self.encoder.device)
        for product in self.products:
            placed = dataclasses.replace(where, cells=product.cells)
            value = product.pipeline.apply(outputs[product.slot][:count], placed)
            finite &= finite_rows(value, valid if product.needs_points else None)
            values[product.name] = value, product.dtype
        return values, finite

    def _collect(self, launched: list[_Launched]) -> Reduced:
        parts = [self._collected(item) for item in launched]
        return parts[0] if len(parts) == 1 else joined(parts)

    def _collected(self, item: _Launched) -> Reduced:
        self.device.wait(item.done)
        for product in self.products:
            largest = item.too_large.get(product.name)
            if largest is not None and largest.item() > 0:
                raise errors.InputError(
                    f"product {product.name!r}: a value of {largest.item():.4g} does not fit float16 (largest 65504): "
                    f"store it as --product '{product.text.partition('@')[0]}@float32', in another --out"
                )
        return Reduced(
            arrays={name: value.numpy() for name, value in item.values.items()},
            finite=item.finite.numpy(),
            sizes=item.sizes,
            encode_seconds=self.device.seconds(item.started, item.encoded),
            reduce_seconds=self.device.seconds(item.encoded, item.reduced),
        )


def padded(pixels: torch.Tensor, smallest: int) -> torch.Tensor:
    """Return at least `smallest` images; the surplus repeats the last one and is cut off after encoding."""
    missing = smallest - len(pixels)
    return pixels if missing <= 0 else torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])

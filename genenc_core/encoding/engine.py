"""One encoder and its products: uint8 batches in, reduced arrays out, safe to share between threads."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from genenc_core import errors
from genenc_core.encoding import batching, post_encoder, products


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

    Shapes: `pixels` uint8 `[B, 3, H, W]`; `points` float64 `[B, K, 2]` in model pixels; `valid` bool `[B, K]`.
    """

    pixels: torch.Tensor
    points: torch.Tensor
    valid: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, start: int, stop: int) -> "Batch":
        """Return the images `start` to `stop`."""
        return Batch(pixels=self.pixels[start:stop], points=self.points[start:stop], valid=self.valid[start:stop])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What is stored of one batch.

    `arrays` has per product `[B, ...]` in its stored type; `finite` bool `[B]` is false where an output was NaN or
    infinite; `sizes` are the batch sizes used; seconds are of this batch.
    """

    arrays: dict[str, np.ndarray]
    finite: np.ndarray
    sizes: tuple[int, ...]
    encode_seconds: float
    reduce_seconds: float


class Engine:
    """Runs batches through one encoder, one at a time, whatever the number of threads that ask."""

    def __init__(self, encoder: Encoder, wanted: Sequence[products.Product], sizer: batching.BatchSizer) -> None:
        self.encoder = encoder
        self.products = tuple(wanted)
        self.sizer = sizer
        self._turn = threading.Lock()

    def encode(self, batch: Batch) -> Reduced:
        """Encode and reduce one batch, in smaller parts when memory runs out.

        Raises:
            EncoderError: the encoder broke its contract, or does not fit in memory at its smallest batch.
            InputError: a value does not fit the stored type.
        """
        parts: list[Reduced] = []
        start = 0
        while start < len(batch):
            stop = min(start + self.sizer.size, len(batch))
            done = self._try(batch.part(start, stop))
            if done is None:
                # Only now is the traceback gone that kept the failed batch in memory.
                self._free()
                continue
            parts.append(done)
            start = stop
        return parts[0] if len(parts) == 1 else _joined(parts)

    def trial(self, size: int, point_count: int) -> None:
        """Encode and throw away `size` images of noise: what `batching.find_size` measures."""
        height, width = self.encoder.input_size
        pixels = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8)
        points = torch.zeros(size, point_count, 2, dtype=torch.float64)
        # What noise gives need not fit the stored type.
        with self._turn, contextlib.suppress(errors.InputError):
            self._run(Batch(pixels=pixels, points=points, valid=torch.ones(size, point_count, dtype=torch.bool)))

    @torch.inference_mode()
    def _run(self, batch: Batch) -> Reduced:
        started = time.perf_counter()
        count = len(batch)
        images = _padded(batch.pixels, self.sizer.bounds.min).to(self.encoder.device)
        outputs = self.encoder(images.float().div_(255.0))
        self._wait()
        encoded = time.perf_counter()
        points = post_encoder.PointBatch(
            xy=batch.points.to(self.encoder.device),
            valid=batch.valid.to(self.encoder.device),
            input_size=self.encoder.input_size,
        )
        arrays: dict[str, np.ndarray] = {}
        finite = torch.ones(count, dtype=torch.bool, device=self.encoder.device)
        for product in self.products:
            value = product.pipeline.apply(outputs[product.slot][:count], points)
            finite &= _finite_rows(value, batch.valid if product.needs_points else None)
            arrays[product.name] = _stored(value, product)
        return Reduced(
            arrays=arrays,
            finite=finite.cpu().numpy(),
            sizes=self.encoder.calls if isinstance(self.encoder, Rebatching) else (len(images),),
            encode_seconds=encoded - started,
            reduce_seconds=time.perf_counter() - encoded,
        )

    def _try(self, batch: Batch) -> Reduced | None:
        """Return the batch's result, or None when it did not fit and a smaller one should be tried."""
        try:
            with self._turn:
                return self._run(batch)
        except (RuntimeError, MemoryError) as error:
            if not batching.is_out_of_memory(error):
                raise
            self.sizer.out_of_memory(len(batch), error)
            return None

    def _free(self) -> None:
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self.encoder.device.type == "cuda":
            torch.cuda.synchronize(self.encoder.device)


def _padded(pixels: torch.Tensor, smallest: int) -> torch.Tensor:
    """Return at least `smallest` images; the surplus repeats the last one and is cut off after encoding."""
    missing = smallest - len(pixels)
    return pixels if missing <= 0 else torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])


def _finite_rows(value: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    finite = (
        torch.isfinite(value).flatten(1) if valid is None else torch.isfinite(value).all(2) | ~valid.to(value.device)
    )
    return finite.all(1)


def _stored(value: torch.Tensor, product: products.Product) -> np.ndarray:
    """Return the value in the product's type on the host.

    Raises:
        InputError: float16 cannot hold a value that float32 holds.
    """
    stored = value.to(getattr(torch, product.dtype))
    if product.dtype == "float16" and bool((torch.isinf(stored) & torch.isfinite(value)).any()):
        largest = value[torch.isfinite(value)].abs().max().item()
        raise errors.InputError(
            f"product {product.name!r}: a value of {largest:.4g} does not fit float16 (largest 65504): store it as "
            f"--product '{product.text.partition('@')[0]}@float32', in another --out"
        )
    return stored.cpu().numpy()


def _joined(parts: Sequence[Reduced]) -> Reduced:
    return Reduced(
        arrays={name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        finite=np.concatenate([part.finite for part in parts]),
        sizes=tuple(size for part in parts for size in part.sizes),
        encode_seconds=sum(part.encode_seconds for part in parts),
        reduce_seconds=sum(part.reduce_seconds for part in parts),
    )

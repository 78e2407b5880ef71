"""Tiled encoding of canvases larger than the model's input: overlapping tiles in, one stitched map per slot out.

A canvas of 512 x 512 pixels, a model of 224 x 224 with cells of 16 pixels, overlap 32:

      0       192     224           288            416    512      pixels
      |--------+-------|             |              |      |
      [ tile 0 . . . . ]             |              |      |        offset   0
               [ tile 1 . . . . . . .|. . . . . . . ]      |        offset 192 = 224 - 32
                                     [ tile 2 . . . . . . .]        offset 288 = 512 - 224, aligned to the border

Three offsets per axis make nine tiles, and each slot `[C, 14, 14]` becomes one map `[C, 32, 32]` on the same grid that
the model would have for the whole canvas. Offsets lie on that grid, so a cell is a weighted mean of the same cell in
every tile that covers it, never an interpolation. Weights (`cosine`) rise and fall as sin^2 over the cells shared with
a neighbour and add up to 1; `average` weights all tiles equally; `none` takes each cell from the tile in which it lies
deepest. At the canvas border a tile's own border is kept, since it is also the border of the whole image. The canvas is
never padded.

Limits: each tile is encoded separately, so a model whose cells see the whole input (attention, squeeze and excitation)
sees no further than its tile; a convolutional network equals the untiled one where its receptive field is within the
overlap that `trim` discards.

Vectors `[C]` (a class token, logits) are the unweighted mean over the tiles, as in multi-crop evaluation.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import torch

from genenc_core import spec
from genenc_core.encoding import batch_size, cancellation, engine
from genenc_core.encoding.device import release
from genenc_core.encoding.tile_plan import TilePlan

GROUP_BYTES = 256 * 2**20
WELL_FILLED = 0.9

# A tile of a batch of canvases: position among the canvas's tiles (row-major), index of the canvas.
_Job = tuple[int, int]


class TiledEncoder:
    """Wraps an encoder of tiles as an encoder of whole canvases; `engine.Engine` runs it like any other.

    Tiles of all canvases of a call share the inner encoder's batches, position by position. `sizer` counts tiles; it
    shrinks if a batch of them does not fit in memory.

    Besides the inner encoder's needs for one batch of tiles, a call needs memory for each canvas's pixels (15 H W
    bytes: float32 and the original bytes) and stitched maps (4 C h w bytes per slot). The maps of a batch of tiles are
    added to the canvases before the next batch begins, so there is only one at a time.
    """

    def __init__(
        self, inner: engine.Encoder, plan: TilePlan, slots: Sequence[spec.SlotSpec], sizer: batch_size.BatchSizer
    ) -> None:
        self.plan = plan
        self.sizer = sizer
        self.calls: tuple[int, ...] = ()
        """Sizes of the batches of tiles in the last call."""
        self._inner = inner
        self._channels = engine.channels_of(inner)
        self._slots = {slot.name: plan.stitched(slot).shape for slot in slots}
        self._stitchers = {slot.name: _Stitcher(plan, slot, inner.device) for slot in slots}

    @property
    def device(self) -> torch.device:
        """Device of the inner encoder."""
        return self._inner.device

    @property
    def channels(self) -> int:
        """Channels that the inner encoder takes."""
        return self._channels

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the canvas in pixels."""
        return self.plan.canvas

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode canvases, float32 RGB `[B, 3, H, W]` in [0, 1]; return `[B, C, h, w]` or `[B, C]` per slot.

        Raises:
            EncoderError: as for the inner encoder.
            Stopped: a stop was requested between two batches of tiles.
        """
        stitched = {name: images.new_zeros((len(images), *shape)) for name, shape in self._slots.items()}
        jobs = list(itertools.product(range(self.plan.count), range(len(images))))
        calls: list[int] = []

        def encode(start: int, stop: int) -> Mapping[str, torch.Tensor]:
            cancellation.current().raise_if_cancelled()
            return self._inner(self._cut(images, jobs[start:stop]))

        parts = batch_size.in_parts(
            *(len(jobs), self.sizer, encode),
            retry=self._shrink,
            release=functools.partial(release, self.device),
        )
        for start, stop, outputs in parts:
            self._add(outputs, jobs[start:stop], stitched)
            calls.append(max(stop - start, self.sizer.bounds.min))
        self.calls = tuple(calls)
        return stitched

    def trial(self, size: int) -> None:
        """Encode and discard `size` tiles of noise, for `batch_size.find_size` to measure.

        Raises:
            RuntimeError, MemoryError: out of memory; other exceptions of the encoder propagate as well.
        """
        with torch.inference_mode():
            self._inner(torch.rand(size, self.channels, *self.plan.tile, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _shrink(self, tiles: int, error: BaseException) -> bool:
        if tiles <= self.sizer.bounds.min:
            return False  # only fewer canvases help, which the engine tries
        self.sizer.out_of_memory(tiles, error)
        return True

    def _cut(self, images: torch.Tensor, part: Sequence[_Job]) -> torch.Tensor:
        """Return tiles `[n, 3, tile height, tile width]`, padded to the smallest batch by repeating the last one."""
        tops, lefts = self.plan.offsets
        height, width = self.plan.tile
        surplus = [part[-1]] * (self.sizer.bounds.min - len(part))
        tiles = []
        for position, canvas in (*part, *surplus):
            row, column = divmod(position, len(lefts))
            top, left = tops[row], lefts[column]
            tiles.append(images[canvas, :, top : top + height, left : left + width])
        return torch.stack(tiles)

    def _add(
        self, outputs: Mapping[str, torch.Tensor], part: Sequence[_Job], stitched: Mapping[str, torch.Tensor]
    ) -> None:
        """Add a batch's outputs to the stitched ones; tiles at one position belong to successive canvases."""
        at = 0
        for position, run in itertools.groupby(part, key=lambda job: job[0]):
            canvases = [canvas for _, canvas in run]
            for name, stitcher in self._stitchers.items():
                value = outputs[name][at : at + len(canvases)]
                stitcher.add(stitched[name][canvases[0] : canvases[-1] + 1], position, value)
            at += len(canvases)


class _Stitcher:
    """Adds the tiles of one slot to the canvases' value."""

    def __init__(self, plan: TilePlan, slot: spec.SlotSpec, device: torch.device) -> None:
        self._share = 1.0 / plan.count
        self._is_map = len(slot.shape) == 3
        if self._is_map:
            self._rows, self._columns = plan.segments(slot.shape)
            self._row_weights, self._column_weights = (
                [torch.from_numpy(segment.weights).to(device) for segment in segments]
                for segments in (self._rows, self._columns)
            )

    def add(self, into: torch.Tensor, position: int, value: torch.Tensor) -> None:
        """Add the values `[n, C, h, w]` or `[n, C]` of the tiles at one position in place."""
        if not self._is_map:
            into.add_(value, alpha=self._share)
            return
        row, column = divmod(position, len(self._columns))
        y, x = self._rows[row], self._columns[column]
        weights = self._row_weights[row][:, None] * self._column_weights[column]
        height, width = y.stop - y.start, x.stop - x.start
        kept = value[:, :, y.first : y.first + height, x.first : x.first + width]
        into[:, :, y.start : y.stop, x.start : x.stop].addcmul_(kept, weights)


def canvases_per_call(
    plan: TilePlan, slots: Sequence[spec.SlotSpec], tiles_per_batch: int, *, channels: int = 3
) -> int:
    """Return how many canvases to encode together: the fewest that fill the batches of tiles, within 256 MiB."""
    values = sum(_size(plan.stitched(slot).shape) for slot in slots)
    one = 5 * _size((channels, *plan.canvas)) + 4 * values
    counts = range(1, max(1, min(tiles_per_batch, GROUP_BYTES // one)) + 1)

    def filled(count: int) -> float:
        tiles = count * plan.count
        return tiles / (-(-tiles // tiles_per_batch) * tiles_per_batch)

    return next((count for count in counts if filled(count) >= WELL_FILLED), max(counts, key=filled))


def _size(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())

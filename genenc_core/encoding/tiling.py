"""An encoder for canvases larger than its model's input: overlapping tiles in, one stitched map per slot out.

A canvas of 512 x 512 pixels, a model of 224 x 224 with cells of 16 pixels, overlap 32:

      0       192     224           288            416    512      pixels
      |--------+-------|             |              |      |
      [ tile 0 . . . . ]             |              |      |        offset   0
               [ tile 1 . . . . . . .|. . . . . . . ]      |        offset 192 = 224 - 32
                                     [ tile 2 . . . . . . .]        offset 288 = 512 - 224, aligned to the border

Three offsets per axis are nine tiles, and each slot `[C, 14, 14]` becomes one map `[C, 32, 32]` on the very grid that
the model would have if it took the canvas whole. Offsets lie on that grid, so a cell is a weighted mean of the same
cell in every tile that covers it, never an interpolation. Weights (`cosine`) rise and fall as sin^2 over the cells
shared with a neighbour and add up to 1; `average` weighs all tiles alike; `none` takes each cell from the tile in which
it lies deepest. At the canvas border a tile's own border is kept: it is the border that the whole image has, too. No
pixels are made up around the canvas.

What tiles cannot give back: each is encoded by itself, so a model whose cells see the whole input (attention, squeeze
and excitation) sees no further than its tile; a convolutional net equals the untiled one where its receptive field is
within the overlap that `trim` throws away.

Vectors `[C]` (a class token, logits) are the mean over the tiles, all counted alike, as in multi-crop evaluation.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch

from genenc_core import spec
from genenc_core.encoding import batching, control, engine
from genenc_core.encoding.device import release
from genenc_core.encoding.tile_plan import TilePlan

GROUP_BYTES = 256 * 2**20
WELL_FILLED = 0.9

# A tile of a batch of canvases: position among the canvas's tiles (row-major), index of the canvas.
_Job = tuple[int, int]


class TiledEncoder:
    """Wraps an encoder of one tile into one of a whole canvas; `engine.Engine` runs it as any other.

    Tiles of all canvases of a call share the inner encoder's batches: those at one position first, then the next.
    `sizer` counts tiles; it shrinks when a batch of them does not fit in memory.

    Besides the inner encoder's own need for one batch of tiles, memory holds per canvas of the call its pixels
    (15 H W bytes: float32, and the bytes they were) and its stitched maps (4 C h w bytes per slot). The maps of a
    batch of tiles are added to the canvases' before the next batch begins, so there is never more than one.
    """

    def __init__(
        self, inner: engine.Encoder, plan: TilePlan, slots: Sequence[spec.SlotSpec], sizer: batching.BatchSizer
    ) -> None:
        self.plan = plan
        self.sizer = sizer
        self.calls: tuple[int, ...] = ()
        """sizes of the batches of tiles in the last call"""
        self._inner = inner
        self._slots = {slot.name: plan.stitched(slot).shape for slot in slots}
        self._stitchers = {slot.name: _Stitcher(plan, slot, inner.device) for slot in slots}

    @property
    def device(self) -> torch.device:
        """Where the inner encoder runs."""
        return self._inner.device

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the canvas in pixels."""
        return self.plan.canvas

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode canvases, float32 RGB `[B, 3, H, W]` in [0, 1]; return per slot `[B, C, h, w]` or `[B, C]`.

        Raises:
            EncoderError: as the inner encoder.
            Stopped: the end was asked for between two batches of tiles.
        """
        found = {name: images.new_zeros((len(images), *shape)) for name, shape in self._slots.items()}
        jobs = list(itertools.product(range(self.plan.count), range(len(images))))
        calls: list[int] = []
        start = 0
        while start < len(jobs):
            control.current().checkpoint()
            part = jobs[start : start + self.sizer.size]
            outputs = self._try(images, part)
            if outputs is None:
                # Only now is the traceback gone that kept the failed batch in memory.
                release(self.device)
                continue
            self._add(outputs, part, found)
            calls.append(max(len(part), self.sizer.bounds.min))
            start += len(part)
        self.calls = tuple(calls)
        return found

    def trial(self, size: int) -> None:
        """Encode and throw away `size` tiles of noise: what `size_search.find_size` measures.

        Raises:
            RuntimeError, MemoryError: for want of memory; whatever else the encoder raises is passed on, too.
        """
        with torch.inference_mode():
            self._inner(torch.rand(size, 3, *self.plan.tile, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _try(self, images: torch.Tensor, part: Sequence[_Job]) -> Mapping[str, torch.Tensor] | None:
        """Return the tiles' outputs, or None when they did not fit and a smaller batch should be tried."""
        try:
            return self._inner(self._cut(images, part))
        except (RuntimeError, MemoryError) as error:
            if not batching.is_out_of_memory(error) or len(part) <= self.sizer.bounds.min:
                # At the smallest batch of tiles only fewer canvases can help: the engine's turn.
                raise
            self.sizer.out_of_memory(len(part), error)
            return None

    def _cut(self, images: torch.Tensor, part: Sequence[_Job]) -> torch.Tensor:
        """Return tiles `[n, 3, tile height, tile width]`; below the smallest batch the last one is repeated."""
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
        self, outputs: Mapping[str, torch.Tensor], part: Sequence[_Job], found: Mapping[str, torch.Tensor]
    ) -> None:
        """Add a batch's outputs to the canvases'; the tiles at one position belong to successive canvases."""
        at = 0
        for position, run in itertools.groupby(part, key=lambda job: job[0]):
            canvases = [canvas for _, canvas in run]
            for name, stitcher in self._stitchers.items():
                value = outputs[name][at : at + len(canvases)]
                stitcher.add(found[name][canvases[0] : canvases[-1] + 1], position, value)
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
        """Add the values `[n, C, h, w]` or `[n, C]` of the tiles at one position, in place."""
        if not self._is_map:
            into.add_(value, alpha=self._share)
            return
        row, column = divmod(position, len(self._columns))
        y, x = self._rows[row], self._columns[column]
        weights = self._row_weights[row][:, None] * self._column_weights[column]
        height, width = y.stop - y.start, x.stop - x.start
        kept = value[:, :, y.first : y.first + height, x.first : x.first + width]
        into[:, :, y.start : y.stop, x.start : x.stop].addcmul_(kept, weights)


def canvases_per_call(plan: TilePlan, slots: Sequence[spec.SlotSpec], tiles_per_batch: int) -> int:
    """Return how many canvases to encode together: the fewest that fill the batches of tiles, within 256 MiB."""
    values = sum(_size(plan.stitched(slot).shape) for slot in slots)
    one = 5 * _size((3, *plan.canvas)) + 4 * values
    counts = range(1, max(1, min(tiles_per_batch, GROUP_BYTES // one)) + 1)

    def filled(count: int) -> float:
        tiles = count * plan.count
        return tiles / (-(-tiles // tiles_per_batch) * tiles_per_batch)

    return next((count for count in counts if filled(count) >= WELL_FILLED), max(counts, key=filled))


def _size(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())

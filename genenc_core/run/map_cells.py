"""Positions of the cells of a run's maps, determined once when the run is made."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.encoding import encoder_threads, products, tile_plan
from genenc_core.encoding.cells import Cells, require_regular
from genenc_core.models import encoder_module, receptive_field
from genenc_core.run import model_cache, outputs_check
from genenc_core.run import parameters as run_parameters
from genenc_core.runtime import consistency, describe, loading
from genenc_core.runtime.encoder import Encoder

Compute = Callable[[torch.Tensor], torch.Tensor]
"""From an image [1, 3, height, width] to a map [C, h, w]."""
_SEEN = 1e-5
"""Changes below this share of the largest one count as none."""
_OWN = 0.1
"""Minimum change of a cell over changed pixels, as a share of the largest change."""
_MUCH_LESS = 0.5
"""Share of the largest change below which the change of several blocks' own cells indicates a shift."""
_MIN_CELLS = 6
_BLOCKS = 16
"""Blocks along the shorter side of a map of the input's size."""
_PROBED = ((0.2, 0.8), (0.5, 0.25), (1.0, 0.5), (0.1, 0.3), (0.7, 0.9))
"""Positions (down, across) of probed blocks, as fractions of the map."""
_EVEN = 1e-3
_PATCH = 14
"""The patch size in use that is no power of two."""
PLACED = ("over=view", "interpolation=cell", "interpolation=bilinear_centers")
"""Parts of products whose values depend on where a map's cells lie."""


def is_placed(product: products.Product) -> bool:
    """Return whether a product's values depend on where the map's cells lie."""
    return product.needs_regions or any(word in product.text for word in PLACED)


def find(
    model: model_cache.ResolvedModel,
    given: run_parameters.ExtractParameters,
    wanted: Sequence[products.Product],
    tiled: tile_plan.TilePlan | None,
) -> dict[str, Cells]:
    """Return the cell positions, by slot, of maps that products probe, pool without bars, or store.

    They are traced through the model, or were when it was exported. If that is impossible (third-party ONNX files or
    compiled packages, code that mixes positions), cells are assumed to divide the input evenly if its size is a
    multiple of the map's; otherwise maps that are only stored are omitted.

    Raises:
        InputError: the positions are unknown and the input size is not a multiple of the map's; or tiles do not join.
    """
    names = {product.slot for product in wanted if is_placed(product)}
    # Tiles that do not join give a wrong map in any case.
    required = names | ({product.slot for product in wanted} if tiled is not None else set())
    stored = {product.slot for product in wanted if len(product.signature.shape) == 3}
    if not required | stored:
        return {}
    size = describe.preprocessing_of(model.spec)
    pixels = (size.height, size.width)
    followed = _followed(model, given, pixels)
    found = {}
    for slot in model.spec.outputs:
        if slot.name not in required | stored or len(slot.shape) != 3:
            continue
        try:
            cells = _of_slot(slot, followed.get(slot.name), pixels, given, model)
        except errors.InputError:
            if slot.name in required:
                raise
            continue
        if tiled is not None:
            require_regular(cells, slot.shape[1:], pixels, subject=f"output slot {slot.name!r}")
        if slot.name in names | stored:
            found[slot.name] = cells
    return found


def _of_slot(
    slot: spec.SlotSpec,
    followed: tuple[receptive_field.Axis, receptive_field.Axis] | None,
    pixels: tuple[int, int],
    given: run_parameters.ExtractParameters,
    model: model_cache.ResolvedModel,
) -> Cells:
    """Return the cell positions of one map.

    Raises:
        InputError: they are unknown and the input size is not a multiple of the map's; or a probe contradicts them.
    """
    shape = slot.shape[1:]
    known = followed or _recorded(slot, pixels, model)
    if known is None or (tuple(shape) == pixels and not _is_per_pixel(known)):
        return _even(slot, pixels, given, model)
    cells = _cells(known, shape, pixels)
    if not outputs_check.is_library_model(model):
        _refuse_elsewhere(cells, slot, pixels, given, model)
    return cells


def _followed(
    model: model_cache.ResolvedModel, given: run_parameters.ExtractParameters, pixels: tuple[int, int]
) -> dict[str, tuple[receptive_field.Axis, receptive_field.Axis]]:
    built = model_cache.built_model(given)
    if built is not None:
        return receptive_field.cells(
            built.module, encoder_module.EncoderModule.slots, size=pixels, channels=built.preprocessing.channel_count
        )
    count = model.spec.resolved_batch_mode().min
    try:
        loaded = model_cache.CACHE.load(model, device=model_cache.device_of(model, given.device), trust=given.trust)
        return receptive_field.traced(loaded, torch.zeros((count, loaded.channels, *pixels), device=loaded.device))
    except Exception:  # every runtime has its own exceptions; the cells are unknown then
        return {}


def _recorded(
    slot: spec.SlotSpec, pixels: tuple[int, int], model: model_cache.ResolvedModel
) -> tuple[receptive_field.Axis, receptive_field.Axis] | None:
    """Return the cells recorded when the model was exported; None if there are none.

    Raises:
        InputError: the images have another size, and the cells do not divide them evenly.
    """
    stated = (model.spec.genenc or spec.GenencBlock()).cells or ()
    found = next((each for each in stated if each.slot == slot.name), None)
    if found is None:
        return None
    known = tuple(zip(found.stride, found.first, strict=True))
    if found.size == pixels:
        return known[0], known[1]
    # Even cells at the exported size do not imply even cells at other sizes; `_even` checks.
    if any(abs(first - stride / 2) > _EVEN for stride, first in known):
        raise errors.InputError(
            f"the cell positions of output slot {slot.name!r} are known only for images of {found.size[0]} x "
            f"{found.size[1]} pixels, the size the model was exported with: give that --image-size, or export it "
            f"with --image-size {pixels[0]}x{pixels[1]}, or to TorchScript, which exposes its strides"
        )
    return None


def _cells(
    known: tuple[receptive_field.Axis, receptive_field.Axis], shape: Sequence[int], pixels: tuple[int, int]
) -> Cells:
    # The stride of a single cell is undefined; use the whole side.
    strides = [axis[0] if count > 1 else float(side) for axis, count, side in zip(known, shape, pixels, strict=True)]
    return Cells(stride=(strides[0], strides[1]), first=(known[0][1], known[1][1]))


def _is_per_pixel(known: tuple[receptive_field.Axis, receptive_field.Axis]) -> bool:
    """Return whether a map of the input's size has exactly one cell per pixel, not an upsampled approximation."""
    return all(abs(stride - 1) < _EVEN for stride, _ in known)


class _Changes:
    """Probe of how pixel changes affect a slot's map whose cells seem to divide the input evenly.

    `group` x `group` cells are treated as one, with the mean of their changes.
    """

    def __init__(self, compute: Compute, pixels: tuple[int, int], channels: int, group: int = 1) -> None:
        self._compute, self._group = compute, group
        self.channels = channels
        self._images = consistency.images(pixels, 1, channels=channels)
        self._before = compute(self._images)
        rows, columns = self._before.shape[1:]
        self.rows, self.columns = -(-rows // group), -(-columns // group)
        self._steps = pixels[0] // rows * group, pixels[1] // columns * group

    def of_strip(self, axis: int, cell: int) -> torch.Tensor:
        """Return the change of each cell, [h, w], for the pixels under one row (`axis` 0) or column (1) of cells."""
        strip = range(cell, cell + 1)
        return self.of(strip, range(self.columns)) if axis == 0 else self.of(range(self.rows), strip)

    def of(self, rows: range, columns: range) -> torch.Tensor:
        """Return the change of each cell, [h, w], when the pixels under these cells are inverted."""
        changed = self._images.clone()
        (high, wide), last = self._steps, (rows.stop, columns.stop)
        block = changed[:, :, rows.start * high : last[0] * high, columns.start * wide : last[1] * wide]
        block.copy_(1 - block)
        change = (self._compute(changed) - self._before).abs().sum(0)
        return nn.functional.avg_pool2d(change[None], self._group, ceil_mode=True)[0]


def _map_of(encoder: Encoder, slot: str, name: str) -> Compute:
    def compute(images: torch.Tensor) -> torch.Tensor:
        least = encoder.spec.resolved_batch_mode().min
        # A copy: models may modify their input in place.
        batch = images.expand(least, -1, -1, -1).clone(memory_format=torch.contiguous_format).to(encoder.device)
        try:
            return encoder_threads.run_in_thread(encoder, batch)[slot][0].cpu().double()
        except Exception as error:  # user models may raise anything
            raise errors.InputError(
                f"{name!r} fails at a batch of {least} images of {images.shape[2]} x {images.shape[3]} pixels: "
                f"{type(error).__name__}: {errors.reason(error)}."
            ) from error

    return compute


def _is_denser(changes: _Changes) -> bool:
    """Return whether cells lie closer than an even division of the input, as after unpadded convolutions.

    Two strips of pixels, half the input apart, are changed; cells are denser if the last cells that change are further
    apart than half the map. If every cell sees every pixel, they coincide and the result is False.
    """
    for axis, cells in enumerate((changes.rows, changes.columns)):
        last = []
        for cell in (0, cells // 2):
            change = changes.of_strip(axis, cell).sum(1 - axis)
            seen = torch.nonzero(change > _SEEN * change.max())
            last.append(int(seen.max()) if len(seen) else 0)
        if last[1] - last[0] > cells // 2 + 1:
            return True
    return False


def _is_cropped(changes: _Changes) -> bool:
    """Return whether pixels under the first or last cells of an axis have no effect while others do."""
    for axis, cells in enumerate((changes.rows, changes.columns)):
        first, middle, last = (float(changes.of_strip(axis, cell).max()) for cell in (0, cells // 2, cells - 1))
        if cells > 2 and min(first, last) == 0 < middle:
            return True
    return False


def _is_elsewhere(compute: Compute, changes: _Changes, pixels: tuple[int, int]) -> bool:
    """Return whether pixels affect other cells than those over them."""
    if (changes.rows, changes.columns) != pixels:
        return _is_misplaced(changes) or _is_shifted(changes)
    # Blocks larger than a pixel: the map may be upsampled.
    return _is_misplaced(_Changes(compute, pixels, changes.channels, -(-min(pixels) // _BLOCKS))) or _is_shifted(
        changes
    )


def _refuse_elsewhere(
    cells: Cells,
    slot: spec.SlotSpec,
    pixels: tuple[int, int],
    given: run_parameters.ExtractParameters,
    model: model_cache.ResolvedModel,
) -> None:
    """Check traced cells of a user's model by probing, as tracing can miss code that mixes positions.

    Blocks of pixels are inverted; cells with centres in or next to them must change if any do.
    """
    encoder = model_cache.CACHE.load(model, device=model_cache.device_of(model, given.device), trust=given.trust)
    compute = _map_of(encoder, slot.name, given.model)
    images = consistency.images(pixels, 1, channels=encoder.channels)
    before = compute(images)
    centres = [
        first + stride * torch.arange(count, dtype=torch.float64)
        for first, stride, count in zip(cells.first, cells.stride, slot.shape[1:], strict=True)
    ]
    side = [max(stride, min(pixels) / _BLOCKS) for stride in cells.stride]
    for shares in _PROBED:
        middles = [line[int(share * (len(line) - 1))] for share, line in zip(shares, centres, strict=True)]
        changed = images.clone()
        rows, columns = (
            slice(max(int(middle - half / 2), 0), max(int(middle + half / 2), 1))
            for middle, half in zip(middles, side, strict=True)
        )
        changed[:, :, rows, columns] = 1 - changed[:, :, rows, columns]
        change = (compute(changed) - before).abs().sum(0)
        near = [(line - middle).abs() <= 1.5 * half for line, middle, half in zip(centres, middles, side, strict=True)]
        if change[near[0]][:, near[1]].max() < _OWN * change.max():
            raise _elsewhere(slot, given)


def _elsewhere(slot: spec.SlotSpec, given: run_parameters.ExtractParameters) -> errors.InputError:
    return errors.InputError(
        f"changing a part of the image affects other cells of output slot {slot.name!r} than those over it: the "
        f"map of {given.model!r} is mirrored, rotated, shifted or reordered, so points and bars would be looked up "
        "at wrong positions. Make the model return the map in image orientation, [C, rows, columns]"
    )


def _is_misplaced(changes: _Changes) -> bool:
    """Return whether pixels affect cells elsewhere, as in mirrored or rotated maps.

    Blocks of a cell's size are inverted one at a time; the cells around the block must change if any do.
    """
    rows, columns = changes.rows, changes.columns
    for down, across in _PROBED:
        row, column = int(down * (rows - 1)), int(across * (columns - 1))
        change = changes.of(range(row, row + 1), range(column, column + 1))
        own = change[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max()
        if own < _OWN * change.max():
            return True
    return False


def _is_shifted(changes: _Changes) -> bool:
    """Return whether all cells are offset by the same whole number of cells from the pixels that affect them.

    Blocks of a cell's size in the middle are inverted one at a time. The offset is measured to the middle of the cells
    that change, or, if all may, to the cell that changes most if the block's own changes much less. Strides cause
    offsets of half a cell, upsampling offsets that differ between cells; neither counts.
    """
    rows, columns = changes.rows, changes.columns
    if min(rows, columns) < _MIN_CELLS:
        return False
    offsets = []
    for step in range(-2, 2):
        row, column = rows // 2 + step, columns // 2 + step
        change = changes.of(range(row, row + 1), range(column, column + 1))
        offsets.append([_offset(change, row, axis=0), _offset(change, column, axis=1)])
    return any(len(set(axis)) == 1 and abs(axis[0]) >= 1 for axis in zip(*offsets, strict=True))


def _offset(change: torch.Tensor, at: int, *, axis: int) -> float:
    """Return the offset in cells between `at` and the change of a map [h, w] along an axis."""
    seen = change > _SEEN * change.max()
    along = torch.nonzero(seen.any(1 - axis)).flatten()
    if len(along) == 0:
        return 0.0
    first, last = int(along[0]), int(along[-1])
    if first > 0 and last < change.shape[axis] - 1:
        return (first + last) / 2 - at
    line = change.amax(1 - axis)
    return float(line.argmax() - at) if line[at] < _MUCH_LESS * line.max() else 0.0


def _even(
    slot: spec.SlotSpec,
    pixels: tuple[int, int],
    given: run_parameters.ExtractParameters,
    model: model_cache.ResolvedModel,
) -> Cells:
    shape = slot.shape[1:]
    if all(side % cells == 0 for side, cells in zip(pixels, shape, strict=True)):
        encoder = model_cache.CACHE.load(model, device=model_cache.device_of(model, given.device), trust=given.trust)
        compute = _map_of(encoder, slot.name, given.model)
        changes = _Changes(compute, pixels, encoder.channels)
        if _is_cropped(changes) and not _is_elsewhere(compute, changes, pixels):
            raise errors.InputError(
                f"the cell positions of output slot {slot.name!r} are unknown: pixels at the edge of the image "
                f"have no effect, so {given.model!r} crops the image itself. Make the model take the whole image "
                "and let genenc crop it (--fit crop)"
            )
        _refuse_ceiled(slot, pixels, given)
        hides_strides = model.backend != "eager" and bool(loading.artifact_files(model.spec))
        if hides_strides and _is_denser(changes):
            raise errors.InputError(
                f"the cell positions of output slot {slot.name!r} are unknown: probing shows that the cells are "
                f"closer than {pixels[0] // shape[0]} x {pixels[1] // shape[1]} pixels, as after convolutions "
                f"without padding, and {given.model!r} does not expose its strides. Run the model itself "
                "(package.module:factory), or export it to TorchScript; both expose them"
            )
        if _is_elsewhere(compute, changes, pixels):
            raise _elsewhere(slot, given)
        return Cells.regular(shape, pixels)
    steps = [_likely_stride(side, cells) for side, cells in zip(pixels, shape, strict=True)]
    raise errors.InputError(
        f"the cell positions of output slot {slot.name!r} are unknown: its map of {shape[0]} x {shape[1]} does not "
        f"divide images of {pixels[0]} x {pixels[1]} pixels, and {given.model!r} does not expose its strides. Points "
        f"and bars could hit neighbouring cells: re-export the model for --image-size {_multiples(pixels, steps)}"
    )


def _multiples(pixels: tuple[int, int], steps: Sequence[int]) -> str:
    """Return the sizes below and above that are multiples of the steps, as `224x64 or 256x64`."""
    below = [max(side // step, 1) * step for side, step in zip(pixels, steps, strict=True)]
    above = [-(-side // step) * step for side, step in zip(pixels, steps, strict=True)]
    return " or ".join(dict.fromkeys(f"{height}x{width}" for height, width in (below, above)))


def _refuse_ceiled(slot: spec.SlotSpec, pixels: tuple[int, int], given: run_parameters.ExtractParameters) -> None:
    """Refuse a map that divides the input by a number that no network has, and may have its last cells beyond the edge.

    A network of stride 32 makes 12 rows of 360 pixels, as cells of 30 pixels would be.

    Raises:
        InputError: so it is.
    """
    shape = slot.shape[1:]
    evens = [side // cells for side, cells in zip(pixels, shape, strict=True)]
    ceiled = [_ceiled_stride(side, cells) for side, cells in zip(pixels, shape, strict=True)]
    if all(even in (step, _PATCH) for even, step in zip(evens, ceiled, strict=True)):
        return
    raise errors.InputError(
        f"the cell positions of output slot {slot.name!r} are unknown: its map of {shape[0]} x {shape[1]} on images "
        f"of {pixels[0]} x {pixels[1]} pixels may have a cell every {evens[0]} x {evens[1]} pixels, or every "
        f"{ceiled[0]} x {ceiled[1]} with the last ones beyond the edge, and {given.model!r} does not expose its "
        f"strides. Give --image-size {_multiples(pixels, ceiled)} (re-export the model for it), run the model itself "
        "(package.module:factory), or export it to TorchScript; both expose them"
    )


def _ceiled_stride(side: int, cells: int) -> int:
    """Return the stride whose cells, rounded up, are so many: of all such ones the one most often divided by two."""
    if cells == 1:
        return side
    return max(range(-(-side // cells), (side - 1) // (cells - 1) + 1), key=lambda step: (step & -step, -step))


def _likely_stride(side: int, cells: int) -> int:
    """Return the likely pixels per cell: of all strides that give this many cells, the one with most factors of two."""
    whole = range(side // (cells + 1) + 1, max(side // cells, 1) + 1) or range(max(side // cells, 1), side + 1)
    return max(whole, key=lambda step: (step & -step, step))

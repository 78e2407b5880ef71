"""Where the cells of a run's maps lie, found once when the run is made."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.encoding import calls, products, tile_plan
from genenc_core.encoding.cells import Cells, require_regular
from genenc_core.export import behaviour, describe, loading
from genenc_core.export.encoder import Encoder
from genenc_core.models import encoder, receptive, wording
from genenc_core.run import encoders, outputs_check
from genenc_core.run import parameters as run_parameters

Compute = Callable[[torch.Tensor], torch.Tensor]
"""From an image [1, 3, height, width] to a map [C, h, w]."""
_SEEN = 1e-5
"""Share of the largest change that is none."""
_OWN = 0.1
"""Least share of the largest change that a cell over changed pixels has."""
_MUCH_LESS = 0.5
"""Share of the largest change below which that of a block's own cell is no accident, for several blocks."""
_LEAST_CELLS = 6
_BLOCKS = 16
"""Blocks along the shorter side of a map of the input's size."""
_LOOKED_AT = ((0.2, 0.8), (0.5, 0.25), (1.0, 0.5), (0.1, 0.3), (0.7, 0.9))
"""Places (down, across) of blocks that are changed, as shares of a map."""
_EVEN = 1e-3
_PLACED = ("over=view", "interpolation=cell", "interpolation=bilinear_centers")


def find(
    model: encoders.ResolvedModel,
    given: run_parameters.ExtractParameters,
    wanted: Sequence[products.Product],
    tiled: tile_plan.TilePlan | None,
) -> dict[str, Cells]:
    """Return where the cells of those maps lie that products probe, or pool without the bars, by slot.

    They are followed through the model. Where that cannot be done (an ONNX file, a compiled package, code that mixes
    places), they divide the input evenly, if a whole number of pixels fits each.

    Raises:
        InputError: they are not known, and the input is no multiple of the map; or tiles that do not join.
    """
    names = {product.slot for product in wanted if any(word in product.text for word in _PLACED)}
    # Tiles that do not join give a wrong map, wherever its cells lie.
    looked_at = names | ({product.slot for product in wanted} if tiled is not None else set())
    if not looked_at:
        return {}
    size = describe.preprocessing_of(model.spec)
    pixels = (size.height, size.width)
    followed = _followed(model, given, pixels)
    found = {}
    for slot in model.spec.outputs:
        if slot.name not in looked_at or len(slot.shape) != 3:
            continue
        shape = slot.shape[1:]
        known = followed.get(slot.name)
        if known and (tuple(shape) != pixels or _is_per_pixel(known)):
            cells = _cells(known, shape, pixels)
            if not outputs_check.is_known(model):
                _refuse_elsewhere(cells, slot, pixels, given, model)
        else:
            cells = _even(slot, pixels, given, model)
        if tiled is not None:
            require_regular(cells, shape, pixels, subject=f"output slot {slot.name!r}")
        if slot.name in names:
            found[slot.name] = cells
    return found


def _followed(
    model: encoders.ResolvedModel, given: run_parameters.ExtractParameters, pixels: tuple[int, int]
) -> dict[str, tuple[receptive.Axis, receptive.Axis]]:
    built = encoders.built_model(given)
    if built is not None:
        return receptive.cells(built.module, encoder.EncoderModule.slots, size=pixels)
    count = model.spec.resolved_batch_mode().min
    try:
        loaded = encoders.CACHE.load(model, device=encoders.device_of(model, given.device), trust=given.trust)
        return receptive.traced(loaded, torch.zeros((count, 3, *pixels), device=loaded.device))
    except Exception:  # every runtime has exceptions of its own; nothing is known of the cells then
        return {}


def _cells(known: tuple[receptive.Axis, receptive.Axis], shape: Sequence[int], pixels: tuple[int, int]) -> Cells:
    # One cell has no stride, and needs none.
    strides = [axis[0] if count > 1 else float(side) for axis, count, side in zip(known, shape, pixels, strict=True)]
    return Cells(stride=(strides[0], strides[1]), first=(known[0][1], known[1][1]))


def _is_per_pixel(known: tuple[receptive.Axis, receptive.Axis]) -> bool:
    """Tell whether the cells of a map of the input's size lie one by one; those made of coarser ones do only about."""
    return all(abs(stride - 1) < _EVEN for stride, _ in known)


class _Changes:
    """What a change of pixels changes in a slot's map whose cells seem to divide the input evenly.

    `group` x `group` cells are looked at as one, whose change is their mean.
    """

    def __init__(self, compute: Compute, pixels: tuple[int, int], group: int = 1) -> None:
        self._compute, self._group = compute, group
        self._images = behaviour.images(pixels, 1)
        self._before = compute(self._images)
        rows, columns = self._before.shape[1:]
        self.rows, self.columns = -(-rows // group), -(-columns // group)
        self._steps = pixels[0] // rows * group, pixels[1] // columns * group

    def of(self, rows: range, columns: range) -> torch.Tensor:
        """Return by how much each cell changes, [h, w], when the pixels under these cells do."""
        changed = self._images.clone()
        (high, wide), last = self._steps, (rows.stop, columns.stop)
        block = changed[:, :, rows.start * high : last[0] * high, columns.start * wide : last[1] * wide]
        block.copy_(1 - block)
        change = (self._compute(changed) - self._before).abs().sum(0)
        return nn.functional.avg_pool2d(change[None], self._group, ceil_mode=True)[0]


def _map_of(encoder: Encoder, slot: str, name: str) -> Compute:
    def compute(images: torch.Tensor) -> torch.Tensor:
        least = encoder.spec.resolved_batch_mode().min
        # A copy: a model may write over the images that it gets.
        batch = images.expand(least, -1, -1, -1).clone(memory_format=torch.contiguous_format).to(encoder.device)
        try:
            return calls.alone(encoder, batch)[slot][0].cpu().double()
        except Exception as error:  # somebody's model may raise anything
            raise errors.InputError(
                f"{name!r} fails at a batch of {least} images of {images.shape[2]} x {images.shape[3]} pixels: "
                f"{type(error).__name__}: {wording.reason(error)}."
            ) from error

    return compute


def _is_denser(changes: _Changes) -> bool:
    """Tell whether cells lie closer than if they divided the input evenly, as those of unpadded convolutions do.

    Two strips of pixels are changed, half the input apart, and the last cells that change are further apart than half
    the map. Where every cell sees every pixel they are the same, and nothing is told.
    """
    whole = range(changes.rows), range(changes.columns)
    for axis, cells in enumerate((changes.rows, changes.columns)):
        last = []
        for cell in (0, cells // 2):
            strip = range(cell, cell + 1)
            change = changes.of(*(strip if each == axis else whole[each] for each in (0, 1))).sum(1 - axis)
            seen = torch.nonzero(change > _SEEN * change.max())
            last.append(int(seen.max()) if len(seen) else 0)
        if last[1] - last[0] > cells // 2 + 1:
            return True
    return False


def _is_elsewhere(compute: Compute, changes: _Changes, pixels: tuple[int, int]) -> bool:
    """Tell whether pixels change other cells than those that lie over them."""
    if (changes.rows, changes.columns) != pixels:
        return _is_misplaced(changes) or _is_shifted(changes)
    # Larger blocks than pixels: the map may be made of a coarser one.
    return _is_misplaced(_Changes(compute, pixels, -(-min(pixels) // _BLOCKS))) or _is_shifted(changes)


def _refuse_elsewhere(
    cells: Cells,
    slot: spec.SlotSpec,
    pixels: tuple[int, int],
    given: run_parameters.ExtractParameters,
    model: encoders.ResolvedModel,
) -> None:
    """Check somebody's own model where its cells were followed: what was followed may mix places without showing it.

    Blocks of pixels are changed, and cells whose centres lie in them or next to them must change, if any do.
    """
    encoder = encoders.CACHE.load(model, device=encoders.device_of(model, given.device), trust=given.trust)
    compute = _map_of(encoder, slot.name, given.model)
    images = behaviour.images(pixels, 1)
    before = compute(images)
    centres = [
        first + stride * torch.arange(count, dtype=torch.float64)
        for first, stride, count in zip(cells.first, cells.stride, slot.shape[1:], strict=True)
    ]
    side = [max(stride, min(pixels) / _BLOCKS) for stride in cells.stride]
    for shares in _LOOKED_AT:
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
        f"a change in the image shows in other cells of output slot {slot.name!r} than in those over it: the "
        f"map of {given.model!r} is mirrored, turned or shifted, or its cells are in another order. Points and "
        "bars would meet other places: let the model return the map as the image lies, [C, rows, columns]"
    )


def _is_misplaced(changes: _Changes) -> bool:
    """Tell whether pixels change other cells than those that lie over them, as in maps that are mirrored or turned.

    Blocks of a cell's size are changed one by one; the cells around a block's own must then change, if any do.
    """
    rows, columns = changes.rows, changes.columns
    for down, across in _LOOKED_AT:
        row, column = int(down * (rows - 1)), int(across * (columns - 1))
        change = changes.of(range(row, row + 1), range(column, column + 1))
        own = change[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max()
        if own < _OWN * change.max():
            return True
    return False


def _is_shifted(changes: _Changes) -> bool:
    """Tell whether all cells lie the same whole number of cells from the pixels that change them.

    Blocks of a cell's size in the middle are changed one by one. The middle of the cells that change counts, or, where
    all may, the cell that changes most, if the block's own changes much less. Strides put cells off by half of one,
    and those that were enlarged to others by different amounts.
    """
    rows, columns = changes.rows, changes.columns
    if min(rows, columns) < _LEAST_CELLS:
        return False
    offsets = []
    for step in range(-2, 2):
        row, column = rows // 2 + step, columns // 2 + step
        change = changes.of(range(row, row + 1), range(column, column + 1))
        offsets.append([_offset(change, row, axis=0), _offset(change, column, axis=1)])
    return any(len(set(axis)) == 1 and abs(axis[0]) >= 1 for axis in zip(*offsets, strict=True))


def _offset(change: torch.Tensor, at: int, *, axis: int) -> float:
    """Return how many cells from `at` the change of a map [h, w] lies along an axis."""
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
    slot: spec.SlotSpec, pixels: tuple[int, int], given: run_parameters.ExtractParameters, model: encoders.ResolvedModel
) -> Cells:
    shape = slot.shape[1:]
    if all(side % cells == 0 for side, cells in zip(pixels, shape, strict=True)):
        encoder = encoders.CACHE.load(model, device=encoders.device_of(model, given.device), trust=given.trust)
        compute = _map_of(encoder, slot.name, given.model)
        changes = _Changes(compute, pixels)
        hides_strides = model.backend != "eager" and bool(loading.artifact_files(model.spec))
        if hides_strides and _is_denser(changes):
            raise errors.InputError(
                f"where the cells of output slot {slot.name!r} lie is not known: a change in the image shows them to "
                f"lie closer than every {pixels[0] // shape[0]} x {pixels[1] // shape[1]} pixels, as after "
                f"convolutions without padding, and {given.model!r} does not show its strides. Run the model itself "
                "(package.module:factory), or export it to TorchScript, which show them"
            )
        if _is_elsewhere(compute, changes, pixels):
            raise _elsewhere(slot, given)
        return Cells.regular(shape, pixels)
    steps = [_likely_stride(side, cells) for side, cells in zip(pixels, shape, strict=True)]
    below = [max(side // step, 1) * step for side, step in zip(pixels, steps, strict=True)]
    above = [-(-side // step) * step for side, step in zip(pixels, steps, strict=True)]
    offers = dict.fromkeys(f"{height}x{width}" for height, width in (below, above))
    raise errors.InputError(
        f"where the cells of output slot {slot.name!r} lie is not known: its map of {shape[0]} x {shape[1]} does not "
        f"divide images of {pixels[0]} x {pixels[1]} pixels, and {given.model!r} does not show its strides. Points and "
        f"bars would meet neighbouring cells: give --image-size {' or '.join(offers)} (export the model again for it)"
    )


def _likely_stride(side: int, cells: int) -> int:
    """Return the pixels of a cell: of all that give so many whole ones, the one most often divided by two."""
    whole = range(side // (cells + 1) + 1, max(side // cells, 1) + 1) or range(max(side // cells, 1), side + 1)
    return max(whole, key=lambda step: (step & -step, step))

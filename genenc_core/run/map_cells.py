"""Where the cells of a run's maps lie, found once when the run is made."""

from collections.abc import Sequence

import torch

from genenc_core import errors, spec
from genenc_core.encoding import calls, products, tile_plan
from genenc_core.encoding.cells import Cells, require_regular
from genenc_core.export import behaviour, describe, loading
from genenc_core.export.encoder import Encoder
from genenc_core.models import encoder, receptive
from genenc_core.run import encoders
from genenc_core.run import parameters as run_parameters

_SEEN = 1e-5
"""Share of the largest change that is none."""
_OWN = 0.1
"""Least share of the largest change that a cell over changed pixels has."""
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
        if tuple(shape) == pixels:
            # A value per pixel, whatever the coarser maps were that it was made of.
            cells = Cells.regular(shape, pixels)
        else:
            cells = _cells(known, shape, pixels) if known else _even(slot, pixels, given, model)
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


class _Changes:
    """What a change of pixels changes in a slot's map whose cells seem to divide the input evenly."""

    def __init__(self, encoder: Encoder, slot: spec.SlotSpec, pixels: tuple[int, int]) -> None:
        self.rows, self.columns = slot.shape[1:]
        self._steps = pixels[0] // self.rows, pixels[1] // self.columns
        self._encoder, self._slot = encoder, slot
        self._images = behaviour.images(pixels, 1)
        self._before = self._map(self._images)

    def of(self, rows: range, columns: range) -> torch.Tensor:
        """Return by how much each cell changes, [h, w], when the pixels under these cells do."""
        changed = self._images.clone()
        (high, wide), last = self._steps, (rows.stop, columns.stop)
        block = changed[:, :, rows.start * high : last[0] * high, columns.start * wide : last[1] * wide]
        block.copy_(1 - block)
        return (self._map(changed) - self._before).abs().sum(0)

    def _map(self, images: torch.Tensor) -> torch.Tensor:
        least = self._encoder.spec.resolved_batch_mode().min
        batch = images.expand(least, -1, -1, -1).contiguous().to(self._encoder.device)
        return calls.alone(self._encoder, batch)[self._slot.name][0].cpu().double()


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


def _is_misplaced(changes: _Changes) -> bool:
    """Tell whether pixels change other cells than those that lie over them, as in maps that are mirrored or turned.

    Blocks of a cell's size are changed one by one; the cells around a block's own must then change, if any do.
    """
    rows, columns = changes.rows, changes.columns
    for row, column in ((rows // 5, columns * 4 // 5), (rows // 2, columns // 4), (rows - 1, columns // 2)):
        change = changes.of(range(row, row + 1), range(column, column + 1))
        own = change[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max()
        if own < _OWN * change.max():
            return True
    return False


def _even(
    slot: spec.SlotSpec, pixels: tuple[int, int], given: run_parameters.ExtractParameters, model: encoders.ResolvedModel
) -> Cells:
    shape = slot.shape[1:]
    if all(side % cells == 0 for side, cells in zip(pixels, shape, strict=True)):
        encoder = encoders.CACHE.load(model, device=encoders.device_of(model, given.device), trust=given.trust)
        changes = _Changes(encoder, slot, pixels)
        hides_strides = model.backend != "eager" and bool(loading.artifact_files(model.spec))
        if hides_strides and _is_denser(changes):
            raise errors.InputError(
                f"where the cells of output slot {slot.name!r} lie is not known: a change in the image shows them to "
                f"lie closer than every {pixels[0] // shape[0]} x {pixels[1] // shape[1]} pixels, as after "
                f"convolutions without padding, and {given.model!r} does not show its strides. Run the model itself "
                "(package.module:factory), or export it to TorchScript, which show them"
            )
        if _is_misplaced(changes):
            raise errors.InputError(
                f"a change in the image shows in other cells of output slot {slot.name!r} than in those over it: the "
                f"map of {given.model!r} is mirrored, turned or shifted, or its cells are in another order. Points and "
                "bars would meet other places: let the model return the map as the image lies, [C, rows, columns]"
            )
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

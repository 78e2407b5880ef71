"""The tiles of a run: worked out from its parameters and its model, and the output slots as products then meet them."""

from collections.abc import Sequence

from genenc_core import errors, spec
from genenc_core.encoding import products, tile_plan
from genenc_core.export import describe
from genenc_core.run import parameters as run_parameters


def check(given: run_parameters.ExtractParameters) -> None:
    """Refuse what can be refused without a model.

    Raises:
        InputError: a canvas that is no size, or tile options without one.
    """
    if given.canvas is not None:
        if given.compile:
            raise errors.InputError("--compile does not go with --canvas, whose batches differ in size: leave one out")
        run_parameters.parse_image_size(given.canvas, name="canvas")
        return
    alone = {"overlap": given.tile_overlap, "trim": given.tile_trim, "blend": given.tile_blend}
    told = [f"--tile-{name} {value}" for name, value in alone.items() if value is not None]
    if told:
        raise errors.InputError(f"{told[0]} does nothing without tiles: give --canvas HxW, or leave it out")


def plan(
    given: run_parameters.ExtractParameters, found: spec.RuntimeModelSpec, wanted: Sequence[products.ProductSpec]
) -> tile_plan.TilePlan | None:
    """Return how the canvas is cut into tiles of the model's input; None without a canvas.

    Raises:
        InputError: the canvas, the overlap, the trim or a slot that a product takes does not fit the tiles.
    """
    if given.canvas is None:
        return None
    size = describe.preprocessing_of(found)
    return tile_plan.make_plan(
        wanted_slots(found, wanted),
        canvas=run_parameters.parse_image_size(given.canvas, name="canvas"),
        tile=(size.height, size.width),
        overlap=given.tile_overlap,
        trim=given.tile_trim or 0,
        blend=given.tile_blend or "cosine",
    )


def wanted_slots(
    found: spec.RuntimeModelSpec, wanted: Sequence[products.ProductSpec | products.Product]
) -> tuple[spec.SlotSpec, ...]:
    """Return the model's output slots that products take; a product without one takes the first."""
    names = {product.slot or found.outputs[0].name for product in wanted}
    return tuple(slot for slot in found.outputs if slot.name in names)


def outputs(
    found: spec.RuntimeModelSpec, wanted: Sequence[products.ProductSpec], tiled: tile_plan.TilePlan | None
) -> tuple[spec.SlotSpec, ...]:
    """Return the output slots as products meet them; with tiles, those that they take are of the whole canvas."""
    if tiled is None:
        return found.outputs
    taken = wanted_slots(found, wanted)
    return tuple(tiled.stitched(slot) if slot in taken else slot for slot in found.outputs)

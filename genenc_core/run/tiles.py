"""Tile plan of a run, from its parameters and model, and output slots after stitching."""

from collections.abc import Sequence

from genenc_core import errors, spec
from genenc_core.encoding import products, tile_plan
from genenc_core.run import parameters as run_parameters
from genenc_core.run.folder import RunFolder
from genenc_core.runtime import describe


def check(given: run_parameters.ExtractParameters) -> None:
    """Validate tile options as far as possible without a model.

    Raises:
        InputError: an invalid canvas size, or tile options without a canvas.
    """
    if given.canvas is not None:
        if given.compile:
            raise errors.InputError("--compile cannot be used with --canvas, whose batches vary in size: leave one out")
        run_parameters.parse_image_size(given.canvas, name="canvas")
        return
    options = {"overlap": given.tile_overlap, "trim": given.tile_trim, "blend": given.tile_blend}
    unused = [f"--tile-{name} {value}" for name, value in options.items() if value is not None]
    if unused:
        raise errors.InputError(f"{unused[0]} has no effect without tiles: add --canvas HxW, or leave it out")


def plan(
    given: run_parameters.ExtractParameters, found: spec.RuntimeModelSpec, wanted: Sequence[products.ProductSpec]
) -> tile_plan.TilePlan | None:
    """Return the plan that cuts the canvas into tiles of the model's input size; None without a canvas.

    Raises:
        InputError: the canvas, overlap, trim or a slot used by a product does not fit the tiles.
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
    """Return the output slots used by products; a product without a slot uses the first."""
    names = {product.slot or found.outputs[0].name for product in wanted}
    return tuple(slot for slot in found.outputs if slot.name in names)


def recorded_products(
    folder: RunFolder, found: spec.RuntimeModelSpec
) -> tuple[list[products.ProductSpec], tuple[products.Product, ...]]:
    """Return a run's recorded product specs, and the products built on its model's slots.

    Raises:
        InputError: the model has no such slots.
    """
    parsed = [products.parse_product(text) for text in folder.identity["products"]]
    points = len(folder.manifest.point_names)
    slots = outputs(found, parsed, folder.tiles)
    return parsed, products.build_products(
        parsed, slots, point_count=points, region_count=folder.region_count, cells=folder.cells
    )


def outputs(
    found: spec.RuntimeModelSpec, wanted: Sequence[products.ProductSpec], tiled: tile_plan.TilePlan | None
) -> tuple[spec.SlotSpec, ...]:
    """Return the output slots as seen by products: with tiles, used slots are stitched to the whole canvas."""
    if tiled is None:
        return found.outputs
    taken = wanted_slots(found, wanted)
    return tuple(tiled.stitched(slot) if slot in taken else slot for slot in found.outputs)

"""Products, the arrays that a forward pass is reduced to: from their text form to shapes and modules."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from genenc_core import errors, spec, stored_arrays
from genenc_core.choices import StoredType
from genenc_core.encoding import pooling, post_encoder
from genenc_core.encoding.cells import Cells

RESERVED = frozenset(("image", "channel", "x", "y", *(array.name for array in stored_arrays.TABLE)))
_OF_MAPS = frozenset(("features", "probes", "regions", "maps"))
_LONGEST_NAME = 200
"""Of arrays and axes, in the documents of the store."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_STEP = re.compile(r"\s*([A-Za-z0-9_]+)\s*(?:\((.*)\))?\s*\Z")
_AXES = {3: post_encoder.MAP, 2: post_encoder.TOKENS, 1: post_encoder.VECTOR}
_AS_RECORDED = {"": "cell", "bilinear": "bilinear_centers"}
"""Interpolation of `spatial_point` -> its unambiguous name in new runs."""
_TYPES = get_args(StoredType)
_FORM = f"NAME=[SLOT:]MODULE[(argument=value)][+MODULE...][@{'|'.join(_TYPES)}]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpec:
    """One stored array: an output slot, the modules applied to it, and the stored type."""

    name: str
    slot: str | None = None
    steps: tuple[post_encoder.Step, ...]
    dtype: StoredType = "float32"

    def __str__(self) -> str:
        slot = f"{self.slot}:" if self.slot else ""
        return f"{self.name}={slot}{'+'.join(map(str, self.steps))}@{self.dtype}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A resolved product: its slot, its pipeline and the signature of one image's value."""

    name: str
    slot: str
    pipeline: post_encoder.Pipeline
    signature: post_encoder.Signature
    dtype: StoredType
    text: str
    cells: Cells | None = None
    """Grid of the slot's map; None if it divides the model input evenly."""

    @property
    def needs_points(self) -> bool:
        """Whether the product has one value per point."""
        return "point" in self.signature.dims

    @property
    def needs_regions(self) -> bool:
        """Whether the product has one value per region."""
        return "region" in self.signature.dims

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in one image's value."""
        return next(axis for axis, dim in enumerate(self.signature.dims) if dim == f"{self.name}_channel")

    @property
    def batch_axis(self) -> int:
        """Axis of the channels in the value of a batch: `[B, ...]`, or of its regions, `[R, ...]`."""
        return self.channel_axis + (not self.needs_regions)

    @property
    def row_dims(self) -> tuple[str, ...]:
        """Axes of the stored array."""
        return self.signature.dims if self.needs_regions else ("image", *self.signature.dims)

    @property
    def row_vectors(self) -> int:
        """Number of vectors of one row of the stored array: of an image, or of a region."""
        shape = self.signature.shape[1:] if self.needs_regions else self.signature.shape
        return math.prod(shape) // self.signature.shape[self.channel_axis]

    @property
    def arrays(self) -> tuple["ProductArray", ...]:
        """The stored arrays: the values, and if they are integers, what they are scaled by."""
        dims, shape = self.signature.dims, self.signature.shape
        beside = stored_arrays.QUANTIZED.get(self.dtype, ())
        empty = 0 if beside else math.nan
        values = ProductArray(name=self.name, dtype=self.dtype, dims=dims, shape=shape, empty=empty, of=None)
        if not beside:
            return (values,)
        axis = self.channel_axis
        dims, shape = (*dims[:axis], *dims[axis + 1 :]), (*shape[:axis], *shape[axis + 1 :])
        return values, *(
            ProductArray(
                name=f"{self.name}_{each.suffix}", dtype="float32", dims=dims, shape=shape, empty=math.nan, of=each
            )
            for each in beside
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProductArray:
    """A stored array of a product; `dims` and `shape` are those of one image's value.

    Those of regions begin with `region`, and with the number of regions of an image on average.
    """

    name: str
    dtype: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    empty: float
    """What rows without an image hold."""
    of: stored_arrays.Companion | None
    """What it is beside the product; None for its values."""


def parse_product(text: str, *, dtype: StoredType = "float32") -> ProductSpec:
    """Parse `NAME=[SLOT:]MODULE[(argument=value)][+MODULE...][@TYPE]`, e.g. `ear=spatial_point(bilinear)@float16`.

    Raises:
        InputError: invalid syntax, a reserved name or an unknown type.
    """
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals or not rest.strip():
        raise errors.InputError(f"product {text!r} is not of the form {_FORM}")
    if not _NAME.match(name) or name in RESERVED:
        reason = "reserved by the store" if name in RESERVED else "use letters, digits and _"
        raise errors.InputError(f"invalid product name {name!r} ({reason})")
    # From the right, since a slot may have any name, such as a dict key.
    rest, stored = rest.rsplit("@", 1) if "@" in rest.rpartition(":")[2] else (rest, dtype)
    stored = stored.strip()
    if stored not in _TYPES:
        raise errors.InputError(f"product {name!r}: type {stored!r} is unknown; known: {', '.join(_TYPES)}")
    head, colon, modules = rest.rpartition(":")
    slot = head.strip() if colon else None
    steps = tuple(_parse_step(part, text) for part in modules.split("+"))
    return ProductSpec(name=name, slot=slot, steps=steps, dtype=cast(StoredType, stored))


def recorded(product: ProductSpec, outputs: Sequence[spec.SlotSpec], *, bars: bool) -> ProductSpec:
    """Return the product as a new run records it, with names for defaults that were different in genenc 0.1.0.

    A plain `spatial_point` becomes the cell that contains the point, `spatial_point(bilinear)` interpolates between
    cell centres; with `bars` around images, poolings of a map exclude the cells on them.
    """
    slot = next((slot for slot in outputs if slot.name == (product.slot or outputs[0].name)), None)
    masked = bars and slot is not None and len(slot.shape) == 3
    return dataclasses.replace(product, steps=tuple(_recorded_step(step, masked) for step in product.steps))


def _recorded_step(step: post_encoder.Step, masked: bool) -> post_encoder.Step:
    arguments = dict(step.arguments)
    interpolation = arguments.get("interpolation", "").lower()
    if step.module == "spatial_point" and interpolation in _AS_RECORDED:
        return post_encoder.Step(step.module, (("interpolation", _AS_RECORDED[interpolation]),))
    if masked and step.module in post_encoder.POOLINGS and "over" not in arguments:
        return post_encoder.Step(step.module, (*step.arguments, ("over", "view")))
    return step


def default_products(
    outputs: Sequence[spec.SlotSpec],
    *,
    with_points: bool,
    with_regions: bool = False,
    dtype: StoredType = "float32",
    probe: str | None = "cell",
) -> tuple[ProductSpec, ...]:
    """Return the default products: the mean of every map, its values at points and regions if any, and every vector.

    One map yields `features`, `probes` and `regions`, several yield `features_SLOT`, ..., as does one map next to
    another slot called `features`. A vector next to maps is named after its slot, or `features_SLOT` if that name is
    taken; token lists next to maps are skipped (`not_stored`). For an encoder without maps every slot is stored as it
    is. `probe` is the interpolation of the probes; None means the default of `spatial_point`.

    Raises:
        InputError: points for an encoder without maps, or slot names that are equal in letters, digits and _.
    """
    if any(len(slot.shape) == 3 for slot in outputs):
        products = _per_slot("features", outputs, post_encoder.Step("global_avg_pool"), dtype)
        step = post_encoder.Step("spatial_point", (("interpolation", probe),) if probe else ())
        products += _per_slot("probes", outputs, step, dtype) if with_points else ()
        products += _per_slot("regions", outputs, post_encoder.Step("region_mean"), dtype) if with_regions else ()
        return products + _vectors(outputs, {product.name for product in products}, dtype)
    if with_points:
        raise errors.InputError(f"the encoder has no map to sample points from, only {_shapes(outputs)}: remove them")
    if with_regions:
        raise errors.InputError(f"the encoder has no map to pool regions of, only {_shapes(outputs)}: remove them")
    return _per_slot("features", outputs, post_encoder.Step("none"), dtype)


def not_stored(outputs: Sequence[spec.SlotSpec], wanted: Sequence[Product]) -> str:
    """Return the output slots without a product, with their shapes; empty if there are none."""
    taken = {product.slot for product in wanted}
    return _shapes([slot for slot in outputs if slot.name not in taken])


def outputs_not_stored(model: spec.RuntimeModelSpec, wanted: Sequence[Product]) -> str:
    """Describe which outputs of a model and of its file are not stored; empty if there are none."""
    slots = not_stored(model.outputs, wanted)
    return "; ".join([*((model.genenc and model.genenc.outputs_left_out) or ()), *([slots] if slots else [])])


def _vectors(outputs: Sequence[spec.SlotSpec], taken: set[str], dtype: StoredType) -> tuple[ProductSpec, ...]:
    """Return one product per vector next to maps; `taken` are the names of the maps' products."""
    exact = {slot.name for slot in outputs}
    names: dict[str, str] = {}
    for slot in outputs:
        if len(slot.shape) != 1:
            continue
        plain = _plain(slot.name)
        # A name that exactly matches another slot is reserved for it.
        others = RESERVED | taken | (_OF_MAPS - {"features"}) | (exact - {slot.name})
        free = _NAME.match(plain) and plain not in others
        names[slot.name] = plain if free else f"features_{plain}"
    for slot_name, name in names.items():
        same = [item for item, other in names.items() if other == name]
        if len(same) > 1 or name in taken:
            raise _name_clash(name, same if len(same) > 1 else [*_same_plain(outputs, slot_name)], "none")
    return tuple(
        ProductSpec(name=name, slot=slot_name, steps=(post_encoder.Step("none"),), dtype=dtype)
        for slot_name, name in names.items()
    )


def _same_plain(outputs: Sequence[spec.SlotSpec], name: str) -> list[str]:
    return [slot.name for slot in outputs if _plain(slot.name) == _plain(name)]


def map_products(outputs: Sequence[spec.SlotSpec], *, dtype: StoredType = "float16") -> tuple[ProductSpec, ...]:
    """Return products that store every map: `maps`, or `maps_SLOT` for several; in float16, or as integers.

    Raises:
        InputError: an encoder without maps, or slot names that are equal in letters, digits and _.
    """
    if not any(len(slot.shape) == 3 for slot in outputs):
        raise errors.InputError(f"--maps: the encoder has no maps, only {_shapes(outputs)}; remove it")
    stored: StoredType = dtype if dtype in stored_arrays.QUANTIZED else "float16"
    return _per_slot("maps", outputs, post_encoder.Step("none"), stored)


def _per_slot(
    base: str, outputs: Sequence[spec.SlotSpec], step: post_encoder.Step, dtype: StoredType
) -> tuple[ProductSpec, ...]:
    """Return one product per map, or without maps per slot that can be stored."""
    steps = (step,)
    slots = [slot.name for slot in outputs if len(slot.shape) == 3]
    slots = slots or [slot.name for slot in outputs if len(slot.shape) in _AXES] or [outputs[0].name]
    taken = base == "features" and any(slot.name == base for slot in outputs if slot.name != slots[0])
    if len(slots) == 1 and not taken:
        slot = None if slots[0] == outputs[0].name else slots[0]
        return (ProductSpec(name=base, slot=slot, steps=steps, dtype=dtype),)
    names = {slot: f"{base}_{_plain(slot)}" for slot in slots}
    for name in names.values():
        same = [slot for slot in slots if names[slot] == name]
        if len(same) > 1:
            raise _name_clash(name, same, step)
    return tuple(ProductSpec(name=name, slot=slot, steps=steps, dtype=dtype) for slot, name in names.items())


def _plain(slot: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", slot)


def _name_clash(name: str, slots: Sequence[str], step: object) -> errors.InputError:
    return errors.InputError(
        f"output slots {' and '.join(map(repr, slots))} would both be stored as {name!r}: name them with --product "
        f"'NAME={slots[-1]}:{step}'"
    )


def _shapes(outputs: Sequence[spec.SlotSpec]) -> str:
    return ", ".join(f"{slot.name} {list(slot.shape)}" for slot in outputs)


def build_products(
    specs: Sequence[ProductSpec],
    outputs: Sequence[spec.SlotSpec],
    *,
    point_count: int,
    region_count: int = 0,
    cells: Mapping[str, Cells] | None = None,
) -> tuple[Product, ...]:
    """Resolve products over an encoder's output slots, with all shapes.

    `region_count` is that of an image, on average. `cells` has the grids of slots whose maps do not divide the model
    input evenly.

    Raises:
        InputError: an unknown slot, an invalid chain of modules, or a repeated name.
    """
    names = [product.name for product in specs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise errors.InputError(f"product {repeated[0]!r} is given twice; use unique names")
    built = [_build(product, outputs, point_count, region_count) for product in specs]
    _refuse_taken(built)
    return tuple(dataclasses.replace(product, cells=(cells or {}).get(product.slot)) for product in built)


def _refuse_taken(products: Sequence[Product]) -> None:
    """Raise `InputError` if a product has the name of an array beside another."""
    names = {product.name for product in products}
    for product in products:
        taken = [array.name for array in product.arrays[1:] if array.name in names]
        if taken:
            raise errors.InputError(
                f"product {taken[0]!r} has the name of an array that {product.name!r} stores beside its "
                f"{product.dtype}: give one of them another name"
            )


def refuse_names(products: Sequence[Product]) -> None:
    """Check that a new run's products can be stored and read by their names; earlier runs keep theirs.

    Raises:
        InputError: the name of an axis, of which xarray would make a coordinate, or too long.
    """
    axes = {dim: array.name for array in stored_arrays.TABLE for dim in array.dims}
    axes |= {dim: product.name for product in products for dim in product.signature.dims}
    for product in products:
        _, _, rest = product.text.partition("=")
        if product.name in axes:
            raise errors.InputError(
                f"product {product.name!r} has the name of an axis of {axes[product.name]!r}, so xarray would take it "
                f"for a coordinate: give it another name, --product 'NAME={rest}'"
            )
        if max(map(len, (product.name, *product.signature.dims))) > _LONGEST_NAME:
            raise errors.InputError(
                f"product {product.name[:40]!r}... has a name of {len(product.name)} characters, too long for the "
                f"names of its axes: give it a shorter one, --product 'NAME={rest}'"
            )


def _build(product: ProductSpec, outputs: Sequence[spec.SlotSpec], point_count: int, region_count: int) -> Product:
    slots = {slot.name: slot for slot in outputs}
    name = product.slot or outputs[0].name
    if name not in slots:
        raise errors.InputError(
            f"product {product.name!r}: the encoder has no output slot {name!r}; it has {', '.join(slots)}"
        )
    steps = product.steps
    if steps[0].module in post_encoder.CLASS_TOKEN and len(slots[name].shape) != 2:
        name, steps = _class_token_slot(product, name, slots), (post_encoder.Step("none"), *steps[1:])
    shape = slots[name].shape
    axes = _AXES.get(len(shape))
    if axes is None:
        raise errors.InputError(
            f"output slot {name!r} has shape {list(shape)}; only maps [C, h, w], tokens [N, C] and vectors [C] can be "
            "stored"
        )
    try:
        pipeline = post_encoder.build_pipeline(steps, point_count=point_count, region_count=region_count)
        signature = pipeline.output(post_encoder.Signature(dims=axes, shape=shape))
    except errors.InputError as error:
        raise errors.InputError(f"product {str(product)!r}: {error}") from error
    # Products of different size in one store need separate axis names, except for the shared points and regions.
    dims = tuple(dim if dim in ("point", "region") else f"{product.name}_{dim}" for dim in signature.dims)
    signature = dataclasses.replace(signature, dims=dims)
    return Product(
        name=product.name, slot=name, pipeline=pipeline, signature=signature, dtype=product.dtype, text=str(product)
    )


def _class_token_slot(product: ProductSpec, name: str, slots: Mapping[str, spec.SlotSpec]) -> str:
    """Return the slot with the class token of the map `name`, or `name` if it is one itself."""
    step = product.steps[0]
    post_encoder.build_pipeline((step,), point_count=0)
    if step.arguments and dict(step.arguments)["has_cls"].lower() == "false":
        raise errors.InputError(f"product {str(product)!r}: has_cls=false means that there is no class token")
    # `cls` belongs to the encoder's own map, `blocks.5.cls` to that of a layer.
    own = "cls" if name == "features" else f"{name}.cls"
    slot = name if name.rpartition(".")[2] == "cls" else own
    if slot not in slots or len(slots[slot].shape) != 1:
        raise errors.InputError(
            f"product {str(product)!r}: the encoder has no class token for {name!r}; its slots are {', '.join(slots)}"
        )
    return slot


def _parse_step(part: str, whole: str) -> post_encoder.Step:
    match = _STEP.match(part)
    if match is None:
        raise errors.InputError(f"product {whole!r}: {part.strip()!r} is not a module; the form is {_FORM}")
    module, inner = match.group(1), (match.group(2) or "").strip()
    arguments = [_parse_argument(module, item.strip()) for item in inner.split(",")] if inner else []
    return post_encoder.Step(module, tuple(arguments))


def _parse_argument(module: str, item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if equals:
        return key.strip(), value.strip()
    # A value without a name is the module's first argument: spatial_point(bilinear).
    known = post_encoder.ARGUMENTS.get(module, ())
    if item in pooling.OVER and "over" in known:
        return "over", item
    return (known[0] if known else item), item

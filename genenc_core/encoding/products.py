"""Products: which arrays one forward pass is reduced to, from their text form to shapes and modules."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from genenc_core import errors, spec
from genenc_core.choices import StoredType
from genenc_core.encoding import pooling, post_encoder
from genenc_core.encoding.cells import Cells

RESERVED = frozenset(
    ("image", "channel", "point", "x", "y", "status", "image_id", "path", "point_x", "point_y", "point_status")
) | frozenset(("image_height", "image_width", "image_affine", "image_orientation"))
_OF_MAPS = frozenset(("features", "probes", "maps"))
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_STEP = re.compile(r"\s*([A-Za-z0-9_]+)\s*(?:\((.*)\))?\s*\Z")
_AXES = {3: post_encoder.MAP, 2: post_encoder.TOKENS, 1: post_encoder.VECTOR}
_FORM = "NAME=[SLOT:]MODULE[(argument=value)][+MODULE...][@float16|float32]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpec:
    """One stored array: an output slot, the modules it passes, and the stored type."""

    name: str
    slot: str | None = None
    steps: tuple[post_encoder.Step, ...]
    dtype: StoredType = "float32"

    def __str__(self) -> str:
        slot = f"{self.slot}:" if self.slot else ""
        return f"{self.name}={slot}{'+'.join(map(str, self.steps))}@{self.dtype}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product ready to run: its slot, its pipeline and the signature of one image's value."""

    name: str
    slot: str
    pipeline: post_encoder.Pipeline
    signature: post_encoder.Signature
    dtype: StoredType
    text: str
    cells: Cells | None = None
    """where the cells of the slot's map lie; None: they divide the model input evenly"""

    @property
    def needs_points(self) -> bool:
        """Whether the product has one value per point."""
        return "point" in self.signature.dims


def parse_product(text: str, *, dtype: StoredType = "float32") -> ProductSpec:
    """Read `NAME=[SLOT:]MODULE[(argument=value)][+MODULE...][@TYPE]`, e.g. `ear=spatial_point(bilinear)@float16`.

    Raises:
        InputError: the text has another form, or a reserved name or an unknown type; the form is told.
    """
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals or not rest.strip():
        raise errors.InputError(f"product {text!r} is not of the form {_FORM}")
    if not _NAME.match(name) or name in RESERVED:
        reason = "the store uses that name itself" if name in RESERVED else "use letters, digits and _"
        raise errors.InputError(f"product name {name!r} cannot be used ({reason})")
    # From the right: a slot may have any name, such as that of a dict's key.
    rest, stored = rest.rsplit("@", 1) if "@" in rest.rpartition(":")[2] else (rest, dtype)
    stored = stored.strip()
    if stored not in get_args(StoredType):
        raise errors.InputError(f"product {name!r}: type {stored!r} is unknown; known: float16, float32")
    head, colon, modules = rest.rpartition(":")
    slot = head.strip() if colon else None
    steps = tuple(_parse_step(part, text) for part in modules.split("+"))
    return ProductSpec(name=name, slot=slot, steps=steps, dtype=cast(StoredType, stored))


def recorded(product: ProductSpec, outputs: Sequence[spec.SlotSpec], *, bars: bool) -> ProductSpec:
    """Return the product as a new run records it: what a word alone meant in genenc 0.1.0 is said with another word.

    `spatial_point(bilinear)` interpolates between the centres of cells; with `bars` around images, poolings of a map
    leave out the cells on them.
    """
    slot = next((slot for slot in outputs if slot.name == (product.slot or outputs[0].name)), None)
    masked = bars and slot is not None and len(slot.shape) == 3
    return dataclasses.replace(product, steps=tuple(_recorded_step(step, masked) for step in product.steps))


def _recorded_step(step: post_encoder.Step, masked: bool) -> post_encoder.Step:
    given = dict(step.arguments)
    if step.module == "spatial_point" and given.get("interpolation", "").lower() == "bilinear":
        return post_encoder.Step(step.module, (("interpolation", "bilinear_centers"),))
    if masked and step.module in post_encoder.POOLINGS and "over" not in given:
        return post_encoder.Step(step.module, (*step.arguments, ("over", "view")))
    return step


def default_products(
    outputs: Sequence[spec.SlotSpec], *, with_points: bool, dtype: StoredType = "float32", probe: str | None = "cell"
) -> tuple[ProductSpec, ...]:
    """Return what is stored by default: of every map its mean and, with points, the vectors there; every vector as is.

    One map gives `features` and `probes`, several give `features_SLOT` and `probes_SLOT`. A vector beside maps has the
    name of its slot, or `features_SLOT` where that name is taken; token lists beside maps are left out (`not_stored`).
    An encoder without maps has every slot stored as it is. `probe` is the interpolation of the probes; None: that of
    `spatial_point` without a word.

    Raises:
        InputError: points for an encoder without maps, or slots whose names are the same in letters, digits and _.
    """
    if any(len(slot.shape) == 3 for slot in outputs):
        products = _per_slot("features", outputs, post_encoder.Step("global_avg_pool"), dtype)
        step = post_encoder.Step("spatial_point", (("interpolation", probe),) if probe else ())
        products += _per_slot("probes", outputs, step, dtype) if with_points else ()
        return products + _vectors(outputs, {product.name for product in products}, dtype)
    if with_points:
        raise errors.InputError(f"the encoder gives no map to probe points in, only {_shapes(outputs)}: leave them out")
    return _per_slot("features", outputs, post_encoder.Step("none"), dtype)


def not_stored(outputs: Sequence[spec.SlotSpec], wanted: Sequence[Product]) -> str:
    """Return the output slots of which no product is made, with their shapes; empty for none."""
    taken = {product.slot for product in wanted}
    return _shapes([slot for slot in outputs if slot.name not in taken])


def outputs_not_stored(found: spec.RuntimeModelSpec, wanted: Sequence[Product]) -> str:
    """Return which outputs of a model and of its file are not stored, in words; empty for none."""
    slots = not_stored(found.outputs, wanted)
    return "; ".join([*((found.genenc and found.genenc.outputs_left_out) or ()), *([slots] if slots else [])])


def _vectors(outputs: Sequence[spec.SlotSpec], taken: set[str], dtype: StoredType) -> tuple[ProductSpec, ...]:
    """Return one product per vector beside maps; `taken` are the names of the products of these."""
    exact = {slot.name for slot in outputs}
    names: dict[str, str] = {}
    for slot in outputs:
        if len(slot.shape) != 1:
            continue
        plain = _plain(slot.name)
        # A name that is exactly another slot's is that one's.
        free = _NAME.match(plain) and plain not in RESERVED | taken | _OF_MAPS | (exact - {slot.name})
        names[slot.name] = plain if free else f"features_{plain}"
    for slot_name, name in names.items():
        same = [item for item, other in names.items() if other == name]
        if len(same) > 1 or name in taken:
            raise _same_name(name, same if len(same) > 1 else [*_of_plain(outputs, slot_name)], "none")
    return tuple(
        ProductSpec(name=name, slot=slot_name, steps=(post_encoder.Step("none"),), dtype=dtype)
        for slot_name, name in names.items()
    )


def _of_plain(outputs: Sequence[spec.SlotSpec], name: str) -> list[str]:
    return [slot.name for slot in outputs if _plain(slot.name) == _plain(name)]


def map_products(outputs: Sequence[spec.SlotSpec]) -> tuple[ProductSpec, ...]:
    """Return `maps`, or `maps_SLOT` for several: every map as it is, in float16.

    Raises:
        InputError: an encoder without maps, or slots whose names are the same in letters, digits and _.
    """
    if not any(len(slot.shape) == 3 for slot in outputs):
        raise errors.InputError(f"--maps: the encoder gives no maps, only {_shapes(outputs)}; leave it out")
    return _per_slot("maps", outputs, post_encoder.Step("none"), "float16")


def _per_slot(
    base: str, outputs: Sequence[spec.SlotSpec], step: post_encoder.Step, dtype: StoredType
) -> tuple[ProductSpec, ...]:
    """Return one product per map; without maps, per slot that can be stored."""
    steps = (step,)
    slots = [slot.name for slot in outputs if len(slot.shape) == 3]
    slots = slots or [slot.name for slot in outputs if len(slot.shape) in _AXES] or [outputs[0].name]
    if len(slots) == 1:
        slot = None if slots[0] == outputs[0].name else slots[0]
        return (ProductSpec(name=base, slot=slot, steps=steps, dtype=dtype),)
    names = {slot: f"{base}_{_plain(slot)}" for slot in slots}
    for name in names.values():
        same = [slot for slot in slots if names[slot] == name]
        if len(same) > 1:
            raise _same_name(name, same, step)
    return tuple(ProductSpec(name=name, slot=slot, steps=steps, dtype=dtype) for slot, name in names.items())


def _plain(slot: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", slot)


def _same_name(name: str, slots: Sequence[str], step: object) -> errors.InputError:
    return errors.InputError(
        f"output slots {' and '.join(map(repr, slots))} would both be stored as {name!r}: name them yourself with "
        f"--product 'NAME={slots[-1]}:{step}'"
    )


def _shapes(outputs: Sequence[spec.SlotSpec]) -> str:
    return ", ".join(f"{slot.name} {list(slot.shape)}" for slot in outputs)


def build_products(
    specs: Sequence[ProductSpec],
    outputs: Sequence[spec.SlotSpec],
    *,
    point_count: int,
    cells: Mapping[str, Cells] | None = None,
) -> tuple[Product, ...]:
    """Return the products over an encoder's output slots, every shape worked out.

    `cells` says where the cells of slots lie; those of others divide the model input evenly.

    Raises:
        InputError: an unknown slot, an impossible chain of modules, or a name given twice.
    """
    names = [product.name for product in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.InputError(f"product {twice[0]!r} is given twice; give each product its own name")
    built = (_build(product, outputs, point_count) for product in specs)
    return tuple(dataclasses.replace(product, cells=(cells or {}).get(product.slot)) for product in built)


def _build(product: ProductSpec, outputs: Sequence[spec.SlotSpec], point_count: int) -> Product:
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
    given = post_encoder.Signature(dims=axes, shape=shape)
    try:
        pipeline = post_encoder.build_pipeline(steps, point_count=point_count)
        signature = pipeline.output(given)
    except errors.InputError as error:
        raise errors.InputError(f"product {str(product)!r}: {error}") from error
    # Two products of different size in one store need axes of their own; points are the same for all.
    dims = tuple(dim if dim == "point" else f"{product.name}_{dim}" for dim in signature.dims)
    signature = dataclasses.replace(signature, dims=dims)
    return Product(
        name=product.name, slot=name, pipeline=pipeline, signature=signature, dtype=product.dtype, text=str(product)
    )


def _class_token_slot(product: ProductSpec, name: str, slots: Mapping[str, spec.SlotSpec]) -> str:
    """Return the slot that holds the class token beside the map `name`, or `name` itself if that is one."""
    step = product.steps[0]
    post_encoder.build_pipeline((step,), point_count=0)
    if step.arguments and dict(step.arguments)["has_cls"].lower() == "false":
        raise errors.InputError(f"product {str(product)!r}: has_cls=false says that there is no class token")
    # `cls` belongs to the encoder's own map, `blocks.5.cls` to that of a layer.
    own = "cls" if name == "features" else f"{name}.cls"
    found = name if name.rpartition(".")[2] == "cls" else own
    if found not in slots or len(slots[found].shape) != 1:
        raise errors.InputError(
            f"product {str(product)!r}: the encoder has no class token beside {name!r}; its slots are "
            f"{', '.join(slots)}"
        )
    return found


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
    # A lone value stands for the module's first argument: spatial_point(bilinear).
    known = post_encoder.ARGUMENTS.get(module, ())
    if item in pooling.OVER and "over" in known:
        return "over", item
    return (known[0] if known else item), item

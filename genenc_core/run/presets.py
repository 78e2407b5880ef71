"""Presets of `--like`: the options under which a run stores what another tool computes from the same weights."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from genenc_core import errors

if TYPE_CHECKING:
    from genenc_core.run.parameters import ExtractParameters


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One tool: what it computes, the options that do the same, and what it leaves to you."""

    computes: str
    """The tool's call, and what it returns."""
    options: Mapping[str, Any]
    """Options of an extraction by their names in Python."""
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Options that must be given beside it, with the reason and an example."""
    models: str = ""
    """Regular expression of the models it is for; "": any."""
    models_are: str = ""
    """Those in words."""
    products_of_layers: str = ""
    """Modules of the product of each of the layers that are given."""
    in_model_files: tuple[str, ...] = ()
    """Options that a model file (.toml, .yaml) states itself, which are neither set nor needed with one."""

    def left_to(self, model: object) -> tuple[str, ...]:
        """Return the options that are the model's own."""
        is_file = isinstance(model, str) and model.lower().endswith((".toml", ".yaml", ".yml"))
        return self.in_model_files if is_file else ()


# Pillow resizes in all of these tools but TerraTorch, which does not resize.
_PIL: Final[Mapping[str, Any]] = {"resampling": "pillow", "antialias": True}

_STATISTICS: Final = "means and stds of its data module, in the units of the images: 120,110,100"

PRESETS: Final[Mapping[str, Preset]] = {
    "thingsvision": Preset(
        computes="extractor.extract_features(batches, module_name, flatten_acts=True): a layer's values, as one vector",
        options=_PIL,
        needs={"layers": "it takes the features of modules that you name, such as avgpool"},
        products_of_layers="flatten",
    ),
    "timm": Preset(
        computes="create_transform(**resolve_data_config(...)), model.forward_head(..., pre_logits=True)",
        options={**_PIL, "layers": ("pre_logits",), "products": ("features=none",)},
    ),
    "fiftyone": Preset(
        computes="dataset.compute_embeddings(model) of a zoo model of torchvision: what its classifier gets",
        options={**_PIL, "fit": "stretch", "layers": ("pre_logits",), "products": ("features=none",)},
        needs={"image_size": "it gives the model images of their own size: HxW, the one size that all of yours have"},
    ),
    "clip-retrieval": Preset(
        computes="clip-retrieval inference: CLIP's image embeddings of length 1, in float16",
        options={
            **_PIL,
            "fit": "crop",
            "crop_share": 1.0,
            "layers": ("head",),
            "products": ("features=l2_normalize@float16",),
        },
        models=r"(timm/)?vit_\w*_clip_\w+(\..+)?",
        models_are="CLIP's vision transformers of timm, such as vit_base_patch32_clip_quickgelu_224.openai",
    ),
    "terratorch": Preset(
        computes="EmbeddingGenerationTask(layers=[-1]): the last map of the backbone, of images that are not resized; "
        "of a model file, what it names as outputs",
        options={"fit": "stretch", "value_range": "0,1", "layers": ("-1",), "products": ("features=none",)},
        needs={
            "image_size": "it does not resize images: HxW, the one size that all of yours have",
            "mean": _STATISTICS,
            "std": _STATISTICS,
        },
        in_model_files=("image_size", "mean", "std", "layers", "products"),
    ),
    "sam": Preset(
        computes="SamPredictor(sam).set_image(image), .get_image_embedding(): [256, 64, 64]",
        options={**_PIL, "fit": "pad", "products": ("features=none",)},
        models=r"(genenc/)?samvit_(base|large|huge)",
        models_are="samvit_base, samvit_large, samvit_huge",
    ),
}


def expanded(values: object) -> object:
    """Return parameters with the options of their preset where they do not state these themselves."""
    if not isinstance(values, Mapping):
        return values
    name = values.get("like")
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        return values
    added = {**preset.options, **_products(preset, values.get("layers"))}
    own = preset.left_to(values.get("model"))
    return {
        **values,
        **{key: each for key, each in added.items() if not _is_stated(values.get(key)) and key not in own},
    }


def check(given: "ExtractParameters") -> None:
    """Raise `InputError` if the preset is not for the model, or an option is missing that it leaves to you."""
    preset = PRESETS.get(given.like or "")
    if preset is None:
        return
    if preset.models and not re.fullmatch(preset.models, given.model):
        raise errors.InputError(
            f"--like {given.like} is for {preset.models_are}, not for {given.model!r}: name one of these"
        )
    for option, reason in preset.needs.items():
        if option not in preset.left_to(given.model) and not _is_stated(getattr(given, option)):
            raise errors.InputError(f"--like {given.like} needs {flag(option)}: {reason}")


def flags(preset: Preset) -> list[str]:
    """Return a preset's options as flags of the command line."""
    products = [f"--product 'features={preset.products_of_layers}'"] if preset.products_of_layers else []
    return [_with_value(name, value) for name, value in preset.options.items()] + products


def flag(option: str) -> str:
    """Return an option as on the command line."""
    return f"--{option.replace('_', '-')}"


def _with_value(option: str, value: Any) -> str:
    if option == "products":
        return " ".join(f"--product '{item}'" for item in value)
    if value is True:
        return flag(option)
    if isinstance(value, tuple):
        return f"{flag(option)}={','.join(value)}"
    return f"{flag(option)} {value:g}" if isinstance(value, float) else f"{flag(option)} {value}"


def _products(preset: Preset, layers: object) -> dict[str, Any]:
    """Return the products of the layers that are given, if the preset makes them from these."""
    names = _split(layers)
    if not preset.products_of_layers or not names:
        return {}
    modules = preset.products_of_layers
    if len(names) == 1:
        return {"products": (f"features={modules}",)}
    return {"products": tuple(f"features_{re.sub(r'[^A-Za-z0-9_]', '_', each)}={each}:{modules}" for each in names)}


def _split(layers: object) -> list[str]:
    items: Sequence[object] = (
        [layers] if isinstance(layers, str) else layers if isinstance(layers, list | tuple) else ()
    )
    return [part.strip() for item in items if isinstance(item, str) for part in item.split(",") if part.strip()]


def _is_stated(value: object) -> bool:
    """Return whether an option is given; forms give empty ones."""
    return value is not None and value != () and value != [] and value != ""

"""Parameters of an inspection: those of an extraction, where a model is optional."""

from genenc_core import text
from genenc_core.choices import INPUT, MODEL, STORE
from genenc_core.run.options import option
from genenc_core.run.parameters import ExtractParameters


class InspectParameters(ExtractParameters):
    """Parameters of an inspection."""

    model: str = option(
        "",
        help="As for extract: its geometry and its cost.",
        group=MODEL,
        often=True,
        metavar="<name|file>",
        usually="none: images and labels alone",
    )
    out: str = option(
        "",
        help="Folder for contact_sheet.png and inspection.json.",
        group=STORE,
        often=True,
        metavar="<folder>",
        path=True,
        usually="nothing is written",
    )
    sample: int = option(
        200, help="Images to look at, evenly spread over all.", group=INPUT, often=True, limits={"ge": 1, "le": 100_000}
    )

    @property
    def title(self) -> str:
        """Display name: images, and the model if there is one."""
        return super().title if self.model else text.title(text.place(self.images))

    def extraction(self, out: str) -> ExtractParameters:
        """Return the parameters of a run with these images and this model."""
        given = {name: value for name, value in self.model_dump(exclude_unset=True).items() if name != "sample"}
        return ExtractParameters.model_validate({**given, "model": self.model or "none", "out": out})


SHOWN = (
    *(
        "images",
        "points",
        "regions",
        "model",
        "like",
        "weights",
        "image_size",
        "fit",
        "products",
        "maps",
        "device",
        "batch_size",
    ),
    *(
        "out",
        "sample",
        "image_column",
        "frames",
        "channels",
        "value_range",
        "limit",
        "points_columns",
        "points_scale",
        "min_likelihood",
        "regions_columns",
        "regions_scale",
        "min_score",
        "weights_key",
    ),
    *(
        "layers",
        "mean",
        "std",
        "antialias",
        "resampling",
        "crop_share",
        "canvas",
        "dtype",
        "decode_workers",
        "image_timeout",
        "max_megapixels",
    ),
    *("backend", "precision", "trust"),
)
"""Options of the command: those that change what is seen, or what it costs."""
OF_MODEL = (
    *("like", "weights", "weights_key", "layers", "products", "maps", "device", "batch_size", "mean", "std"),
    *("antialias", "resampling", "crop_share"),
    *("canvas", "tile_overlap", "tile_trim", "tile_blend", "dtype", "backend", "precision", "compile", "models"),
    *("reproducible", "output_shape"),
)
"""Options that say nothing about images and labels alone."""

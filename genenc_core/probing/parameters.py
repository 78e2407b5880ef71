"""Parameters of a probe set, as set by users, config files or the Prefect form."""

from typing import Any

from pydantic import field_validator

from genenc_core import choices, text
from genenc_core.choices import INPUT, POINTS, PRODUCTS, STORE
from genenc_core.run import options
from genenc_core.run.options import option
from genenc_core.run.parameters import ExtractParameters, encodable, usable

_OF_EXTRACT: Any = ExtractParameters.model_fields


class ProbeParameters(options.Parameters):
    """Parameters of a probe set."""

    source: str = option(
        help="A run or dataset whose maps are stored, or s3://bucket/prefix.", group=INPUT, often=True, path=True
    )
    out: str = option(
        help="The folder of the probe set, to create or continue, or s3://bucket/prefix.",
        group=STORE,
        often=True,
        metavar="<folder>",
        path=True,
    )
    points: str | None = option(
        None,
        help="Labelled points, in any form that extract takes.",
        group=POINTS,
        often=True,
        metavar="<file|folder|glob>",
        path=True,
        usually="the source's own, where a product needs some",
    )
    regions: tuple[str, ...] = option(
        (),
        help="Labelled regions, in any form that extract takes. May be repeated.",
        group=POINTS,
        often=True,
        metavar="<file|folder|glob>",
        path=True,
        usually="the source's own, where a product needs some",
    )
    products: tuple[str, ...] = option(
        (),
        help="What to store: a stored slot (else the first), modules that reduce it, the stored type. May be repeated.",
        group=PRODUCTS,
        often=True,
        usually="probes, regions with regions",
        metavar="<NAME=[SLOT:]MODULE[+MODULE...][@TYPE]>",
        flag="product",
    )
    version: str | None = option(
        None,
        help="Of a dataset: the version to probe, a number or a tag.",
        group=INPUT,
        usually="the newest",
        metavar="<N|tag>",
    )
    points_columns: str | None = _OF_EXTRACT["points_columns"]
    min_likelihood: float | None = _OF_EXTRACT["min_likelihood"]
    points_scale: str | None = _OF_EXTRACT["points_scale"]
    regions_columns: str | None = _OF_EXTRACT["regions_columns"]
    regions_scale: str | None = _OF_EXTRACT["regions_scale"]
    min_score: float | None = _OF_EXTRACT["min_score"]
    dtype: choices.StoredType = _OF_EXTRACT["dtype"]
    chunk_channels: int | None = _OF_EXTRACT["chunk_channels"]

    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object) -> object:
        return encodable(usable(value))

    @property
    def title(self) -> str:
        """Display name: the source, and the points if some are given."""
        of = text.place(self.source)
        return text.title(of if self.points is None else f"{of} at {text.place(self.points)}")

    @property
    def run_title(self) -> str:
        """Display name of the probe set."""
        return text.title(text.place(self.out))

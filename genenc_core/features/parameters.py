"""Parameters of what is done with stored features, as set by users, config files or the Prefect form."""

import re
from typing import Any, NamedTuple

from pydantic import field_validator

from genenc_core import choices, text
from genenc_core.choices import INPUT, POINTS, PRODUCTS, RUN, SEARCH, STORE
from genenc_core.run import options
from genenc_core.run.options import option
from genenc_core.run.parameters import TRUST, ExtractParameters, encodable, usable

VERSION: Any = option(
    None,
    help="Of a dataset: the version, a number or a tag.",
    group=INPUT,
    usually="the newest",
    metavar="<N|tag>",
)
MEMORY: Any = option(
    256,
    help="Memory for a block of stored vectors, in MiB; a row is read whole.",
    group=RUN,
    limits={"ge": 1, "le": 2**20},
)
LICENSE: Any = option(
    None,
    help="The licence that the document states: an SPDX identifier (CC-BY-4.0), an address, or words.",
    group=STORE,
    often=True,
    metavar="<licence>",
    usually="none is stated",
)
SOURCE: Any = option(help="A run or dataset, or s3://bucket/prefix.", group=INPUT, often=True, path=True)


class _Parameters(options.Parameters):
    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object) -> object:
        return encodable(usable(value))


class SearchParameters(_Parameters):
    """Parameters of a search."""

    source: str = SOURCE
    like: str | None = option(
        None,
        help="An image file: it is encoded as the run's images were, with the run's own model.",
        group=SEARCH,
        often=True,
        metavar="<image>",
        path=True,
        usually="none",
    )
    row: str | None = option(
        None,
        help="A stored image: its image_id or the end of it, or #N; it is not among those found.",
        group=SEARCH,
        often=True,
        metavar="<image_id|#N>",
        usually="none",
    )
    point: str | None = option(
        None,
        help="Compare the vectors at this point.",
        group=SEARCH,
        often=True,
        metavar="<point>",
        usually="vectors of whole images",
    )
    region: str | None = option(
        None,
        help="A stored region: its name in the image that --row gives, or #N; the nearest regions are found.",
        group=SEARCH,
        often=True,
        metavar="<name|#N>",
        usually="none",
    )
    top: int = option(10, help="How many to find.", group=SEARCH, often=True, limits={"ge": 1, "le": 1_000_000})
    product: str = option(
        "",
        help="The product whose vectors are compared; its axes after the point are flattened.",
        group=PRODUCTS,
        often=True,
        metavar="<name>",
        usually="the first with a vector for each image, or for each point",
    )
    metric: choices.Metric = option("cosine", help="cosine: 1 - cos; l2: Euclidean.", group=SEARCH, often=True)
    at: str | None = option(
        None, help="With --like: the pixel to look at.", group=POINTS, metavar="<X,Y>", usually="the whole image"
    )
    any_point: bool = option(False, help="With --point: compare with all points of the images.", group=POINTS)
    version: str | None = VERSION
    memory: int = MEMORY
    trust: bool = TRUST

    @property
    def title(self) -> str:
        """Display name: what is searched."""
        return text.title(text.place(self.source))


class CompareParameters(_Parameters):
    """Parameters of a comparison."""

    source: str = option(help="A run or dataset, or s3://bucket/prefix.", group=INPUT, often=True, path=True)
    other: str = option(help="The one to compare with it.", group=INPUT, often=True, path=True)
    product: str = option(
        "",
        help="The product to compare.",
        group=PRODUCTS,
        often=True,
        metavar="<name>",
        usually="the first with vectors that both have",
    )
    other_product: str = option(
        "", help="The product of the other one.", group=PRODUCTS, metavar="<name>", usually="of the same name"
    )
    worst: int = option(10, help="How many of the rows that differ most to name.", group=PRODUCTS, limits={"ge": 0})
    different_images: bool = option(False, help="Compare images of one name although their files differ.", group=INPUT)
    version: str | None = VERSION
    other_version: str | None = option(
        None, help="Of the other dataset: its version.", group=INPUT, usually="the newest", metavar="<N|tag>"
    )
    memory: int = MEMORY

    @property
    def title(self) -> str:
        """Display name: the two."""
        return text.title(f"{text.place(self.source)} and {text.place(self.other)}")


class TraceParameters(_Parameters):
    """Parameters of a trace."""

    source: str = SOURCE
    image: str = option(
        help="The image: its image_id or the end of it, its path, or #N for a row.",
        group=INPUT,
        often=True,
        metavar="<image_id|#N>",
    )
    version: str | None = VERSION

    @property
    def title(self) -> str:
        """Display name: the image and where it is stored."""
        return text.title(f"{self.image} in {text.place(self.source)}")


class RerunParameters(_Parameters):
    """Parameters of a run that is made again."""

    source: str = option(help="A run, or s3://bucket/prefix.", group=INPUT, often=True, path=True)
    out: str = option(
        help="The new run folder, or s3://bucket/prefix.", group=STORE, often=True, metavar="<folder>", path=True
    )
    device: str | None = option(
        None,
        help="Where the model runs.",
        group=RUN,
        often=True,
        usually="the kind of device that the run was made on",
        metavar=options.DEVICES,
        values=options.DEVICE_VALUES,
    )
    decode_workers: int | None = ExtractParameters.model_fields["decode_workers"]  # type: ignore[assignment]
    trust: bool = TRUST

    @property
    def title(self) -> str:
        """Display name: the run."""
        return text.title(text.place(self.source))

    @property
    def run_title(self) -> str:
        """Display name of the new run."""
        return text.title(text.place(self.out))


class ExportFeaturesParameters(_Parameters):
    """Parameters of an export of features."""

    source: str = SOURCE
    out: str = option(
        help="What is written: a folder, of hdf5 a file; it must not exist.",
        group=STORE,
        often=True,
        metavar="<path>",
        path=True,
    )
    format: choices.FeatureFormat = option(
        "parquet",
        help="parquet: tables with vectors as fixed-size lists; npy: an array per file; hdf5: one file; hub: a folder "
        "for the Hugging Face Hub, with a card.",
        group=STORE,
        often=True,
    )
    products: tuple[str, ...] = option(
        (),
        help="The products to export. May be repeated.",
        group=PRODUCTS,
        often=True,
        metavar="<name>",
        usually="all",
        flag="product",
    )
    only_ok: bool = option(
        False, help="Leave out rows without features; otherwise they are kept, with their status.", group=PRODUCTS
    )
    license: str | None = LICENSE
    version: str | None = VERSION
    memory: int = MEMORY

    @property
    def title(self) -> str:
        """Display name: what is exported as what."""
        return text.title(f"{text.place(self.source)} as {self.format}")


class Agent(NamedTuple):
    """A person."""

    name: str
    url: str | None
    """ORCID or another address."""

    @classmethod
    def parse(cls, given: str) -> "Agent":
        """Parse `NAME`, or `NAME <ORCID or https://...>`.

        Raises:
            ValueError: it is none of these, or no ORCID has these digits.
        """
        match = re.fullmatch(r"\s*([^<>]*[^<>\s])\s*(?:<([^<>\s]+)>)?\s*", given)
        if match is None:
            raise ValueError(f"{given!r} is no person: give a name, or 'NAME <ORCID>'")
        name, url = match.groups()
        if url is None:
            return cls(name, None)
        orcid = re.fullmatch(r"(?:https?://orcid\.org/)?(\d{4}-\d{4}-\d{4}-\d{3}[\dX])", url)
        if orcid is None and not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is neither an ORCID (0000-0002-1825-0097) nor an https:// address")
        if orcid is not None and not _checks(orcid[1]):
            raise ValueError(f"{orcid[1]!r} is not an ORCID: its last digit does not check; copy it again")
        return cls(name, url if orcid is None else f"https://orcid.org/{orcid[1]}")


def _checks(orcid: str) -> bool:
    """Return whether the last digit is that of ISO 7064 11-2."""
    digits, total = orcid.replace("-", ""), 0
    for digit in digits[:-1]:
        total = (total + int(digit)) * 2
    return "0123456789X"[(12 - total % 11) % 11] == digits[-1]


class ExportProvenanceParameters(_Parameters):
    """Parameters of an export of provenance."""

    source: str = SOURCE
    format: choices.ProvenanceFormat = option(
        "ro-crate",
        help="ro-crate: ro-crate-metadata.json, which makes the folder an RO-Crate (Process Run Crate); openlineage: "
        "the sessions as events.",
        group=STORE,
        often=True,
    )
    out: str | None = option(
        None,
        help="A new folder for it, with copies of the records, without arrays and weights.",
        group=STORE,
        often=True,
        metavar="<folder>",
        usually="beside the arrays",
        path=True,
    )
    license: str | None = LICENSE
    agent: str | None = option(
        None,
        help="Of an RO-Crate: who made it, 'NAME' or 'NAME <ORCID>'.",
        group=STORE,
        often=True,
        metavar="<name>",
        usually="not named",
    )
    version: str | None = VERSION

    @field_validator("agent")
    @classmethod
    def _agent_is_a_person(cls, value: str | None) -> str | None:
        if value is not None:
            Agent.parse(value)
        return value

    @property
    def who(self) -> Agent | None:
        """The person."""
        return None if self.agent is None else Agent.parse(self.agent)

    @property
    def title(self) -> str:
        """Display name: what is exported as what."""
        return text.title(f"{text.place(self.source)} as {self.format}")

"""Labels of points, and the table of positions by image and point that they make."""

import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from genenc_core import errors
from genenc_core.images.labels import matching
from genenc_core.images.labels.scale import PIXELS, PointsScale

_UNLIKELY = (
    "stored as `point_likelihood`, but leaves no label out: every one is a point, however unlikely; --min-likelihood "
    "0.6 leaves out lower ones"
)
LARGEST_TABLE = 2**26
"""Images times point names: 1 GiB of positions."""
_ROUNDING = 1e-6
"""Of likelihoods in 32 bits."""


class LabelsNotUsed(UserWarning):
    """A points file holds more than points, or points that are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One point of one image, as a file has it."""

    file: str
    row: str
    """Where it is in the file, for messages: `row 5`."""
    image: str
    name: str
    """Of the point, such as a body part."""
    x: float
    """NaN if missing, as `y`."""
    y: float
    individual: str = ""
    """The animal or person, where a file tells several apart."""
    likelihood: float = math.nan
    """0 to 1; NaN if the file has none."""
    frame_size: tuple[int, int] | None = None
    """Width and height of the image, where the file states them."""
    folders_are_hints: bool = False
    """Whether the folders in the image's name only tell images of one name apart, as `PointTable.hinted` has it."""

    @property
    def place(self) -> str:
        """The file and the row."""
        return f"{self.file}: {self.row}"

    @property
    def full_name(self) -> str:
        """The name that is unique within an image."""
        return f"{self.individual}.{self.name}" if self.individual else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTable:
    """Points in source-image pixels, origin at the top-left edge; NaN = missing.

    If `scale` is relative, they are fractions of the image's width and height.
    """

    names: tuple[str, ...]
    """Unique; `individual.point` where the labels are of several individuals."""
    images: tuple[str, ...]
    """Normalised by `matching.normal`."""
    xy: np.ndarray
    """float64 `[len(images), len(names), 2]`."""
    scale: PointsScale = PIXELS
    """The scale that was applied to the file's coordinates."""
    individuals: tuple[str, ...] = ()
    """The individual of each name, "" for none; () if there are none at all."""
    uncertain: Mapping[int, int] = field(default_factory=dict)
    """Labels left out because of their likelihood, by the index of their image."""
    by_stem: bool = False
    """Whether images are named without their endings, as files of one image each name them."""
    frame_sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Width and height of the images, by their index, where the file states them."""
    folders: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """The folders of the files that have labels of an image, by its index, where its name says no folder and the files
    are in several; below the one that all are in."""
    hinted: frozenset[int] = frozenset()
    """Images, by their index, whose folders may be elsewhere: the longest common end decides, and the name suffices."""
    likelihood: np.ndarray | None = None
    """float64 `[len(images), len(names)]`, NaN where none is known; None if the labels have none at all."""

    def without_individuals(self) -> "PointTable":
        """Return the table with names that leave out the individual; as it is where these are not unique."""
        plain = [name[len(own) + 1 :] if own else name for name, own in zip(self.names, self.individuals, strict=False)]
        return replace(self, names=tuple(plain), individuals=()) if len({*plain}) == len(self.names) else self

    def in_order_of(self, names: Sequence[str], *, individuals: Sequence[str]) -> "PointTable":
        """Return the table with its points in this order; names that it lacks are missing points.

        A table with other points is returned as it is. `individuals` are those of `names`, or empty.
        """
        if not set(self.names) <= set(names):
            return self
        xy = np.full((len(self.images), len(names), 2), np.nan)
        at = [names.index(name) for name in self.names]
        xy[:, at] = self.xy
        likelihood = None if self.likelihood is None else np.full(xy.shape[:2], np.nan)
        if likelihood is not None:
            likelihood[:, at] = self.likelihood
        return replace(self, names=tuple(names), xy=xy, individuals=tuple(individuals), likelihood=likelihood)


@dataclass(slots=True)
class _Building:
    images: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    individuals: list[tuple[str, str]] = field(default_factory=list)
    """(individual, name) by index of the full name."""
    placed: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    places: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    """(file, row)."""
    likelihoods: dict[tuple[int, int], float] = field(default_factory=dict)
    uncertain: Counter[int] = field(default_factory=Counter)
    frame_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    folders: dict[int, frozenset[str]] = field(default_factory=dict)
    strict: set[int] = field(default_factory=set)
    """Images whose folders are no hints."""


def build(
    labels: Iterable[Label], *, min_likelihood: float | None = None, folders: Mapping[str, str] = MappingProxyType({})
) -> PointTable:
    """Return the table of labels; images and names keep the order of first appearance.

    Names are normalised to composed characters (NFC), images also by `matching.normal`. With `min_likelihood`, labels
    of a lower one are missing points. `folders` are those of the files, if they are in several.

    Raises:
        InputError: a repeated point, a name that is no valid text, x without y, two points of the same full name, two
            sizes of an image, too large a table, or a label without a likelihood from 0 to 1 where one is asked for.
    """
    made = _Building()
    for label in labels:
        if not label.image or not label.name:
            raise errors.InputError(f"{label.place} has an empty image or point")
        key = _key(made, label)
        if math.isnan(label.x) != math.isnan(label.y):
            there, empty = ("y", "x") if math.isnan(label.x) else ("x", "y")
            raise errors.InputError(
                f"{label.place} has {there} but no {empty} for the point {label.full_name!r} of {label.image!r}; "
                "leave both empty if it is missing"
            )
        if key in made.placed:
            file, row = made.places[key]
            where = row if file == label.file else f"{file}: {row}"
            raise errors.InputError(
                f"{label.place} repeats the point {label.full_name!r} of {label.image!r} from {where}; keep one"
            )
        if label.frame_size is not None and made.frame_sizes.setdefault(key[0], label.frame_size) != label.frame_size:
            (width, height), (other_width, other_height) = label.frame_size, made.frame_sizes[key[0]]
            raise errors.InputError(
                f"{label.place}: the image {label.image!r} is {width} x {height} pixels here and {other_width} x "
                f"{other_height} before: bring its labels to one size"
            )
        if folders and "/" not in label.image.replace("\\", "/"):
            made.folders[key[0]] = made.folders.get(key[0], frozenset()) | {folders[label.file]}
        if not label.folders_are_hints:
            made.strict.add(key[0])
        if not math.isnan(label.likelihood):
            made.likelihoods[key] = label.likelihood
        made.places[key] = label.file, label.row
        is_uncertain = _is_uncertain(label, min_likelihood)
        made.placed[key] = (math.nan, math.nan) if is_uncertain else (label.x, label.y)
        if is_uncertain:
            made.uncertain[key[0]] += 1
    for name in (*made.names, *made.images):
        _refuse_surrogates(name)
    individuals = tuple(individual for individual, _ in made.individuals)
    return PointTable(
        names=tuple(made.names),
        images=tuple(made.images),
        xy=_array(made.placed, (len(made.images), len(made.names), 2)),
        individuals=individuals if any(individuals) else (),
        uncertain=made.uncertain,
        frame_sizes=made.frame_sizes,
        folders=made.folders,
        hinted=frozenset(range(len(made.images))) - made.strict,
        likelihood=_array(made.likelihoods, (len(made.images), len(made.names))) if made.likelihoods else None,
    )


def _refuse_surrogates(name: str) -> None:
    """Refuse half a character, which JSON can hold and no file that is written from it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise errors.InputError(f"the name {name!r} in the points file is not valid text: correct it") from error


def _key(made: _Building, label: Label) -> tuple[int, int]:
    image = made.images.setdefault(matching.normal(label.image), len(made.images))
    own = unicodedata.normalize("NFC", label.individual), unicodedata.normalize("NFC", label.name)
    full = f"{own[0]}.{own[1]}" if own[0] else own[1]
    name = made.names.setdefault(full, len(made.names))
    if name == len(made.individuals):
        made.individuals.append(own)
    elif made.individuals[name] != own:
        raise errors.InputError(
            f"{label.place}: the point {own[1]!r} of {own[0]!r} and the point {made.individuals[name][1]!r} of "
            f"{made.individuals[name][0]!r} would both be named {full!r}: rename one"
        )
    if len(made.images) * len(made.names) > LARGEST_TABLE:
        raise errors.InputError(
            f"{label.place}: {len(made.images)} images times {len(made.names)} point names exceed {LARGEST_TABLE:,} "
            "entries. Use the same point names in every image instead of unique ones"
        )
    return image, name


def _is_uncertain(label: Label, least: float | None) -> bool:
    if least is None or math.isnan(label.x):
        return False
    if math.isnan(label.likelihood):
        raise errors.InputError(
            f"--min-likelihood {least:g} needs a likelihood of every label, and {label.place} has none: leave the "
            "option out, or add a column `likelihood`"
        )
    if not -_ROUNDING <= label.likelihood <= 1 + _ROUNDING:
        raise errors.InputError(
            f"{label.place}: the likelihood is {label.likelihood:g}, not between 0 and 1 as --min-likelihood {least:g} "
            "needs it: divide percent by 100, clip scores, or leave the option out"
        )
    return label.likelihood < least


def _array(placed: Mapping[tuple[int, int], object], shape: tuple[int, ...]) -> np.ndarray:
    """Return values by image and name, NaN where there is none."""
    values = np.full(shape, np.nan)
    if placed:
        rows, columns = np.array(list(placed), dtype=np.intp).T
        values[rows, columns] = np.array(list(placed.values()))
    return values


def number(place: str, column: str, cell: object) -> float:
    """Return the number in a cell; NaN for an empty one.

    Raises:
        InputError: not a finite number.
    """
    if cell is None or cell == "":
        return math.nan
    text = str(cell)
    try:
        # Python accepts 1_000, which no table means as a number.
        value = math.inf if "_" in text else float(text)
    except ValueError:
        value = math.inf
    if math.isinf(value) and re.fullmatch(r"-?\d+,\d+", text.strip()):
        raise errors.InputError(f"{place}: {column} is {text[:80]!r}, with a decimal comma: use a decimal point")
    if math.isinf(value):
        raise errors.InputError(f"{place}: {column} is {text[:80]!r}, not a finite number; leave it empty if missing")
    return value


@dataclass(slots=True)
class Unused:
    """What points files hold beside points, to warn of once for all files."""

    likelihoods_count: bool = False
    """Whether likelihoods are used."""
    found: dict[str, list[str]] = field(default_factory=dict)
    """What is not used and why, as a sentence -> names of the files."""

    def add(self, file: str, what: str, remedy: str) -> None:
        """Remember a part of a file that is not used."""
        self.found.setdefault(f"not used: {what}. {remedy}", []).append(file)

    def add_likelihood(self, file: str, what: str) -> None:
        """Remember that a file has likelihoods, if they leave out no label."""
        if not self.likelihoods_count:
            self.found.setdefault(f"{what} is {_UNLIKELY}", []).append(file)

    def warn(self) -> None:
        """Warn of all that was added."""
        for words, (first, *others) in self.found.items():
            more = f" and {len(others)} more" if others else ""
            warnings.warn(f"{first}{more}: {words}", LabelsNotUsed, stacklevel=3)

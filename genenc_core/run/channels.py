"""Channels of a run's images: which of a file's are taken, and how their values are scaled."""

import math
import re
from collections.abc import Sequence

from genenc_core import errors, spec
from genenc_core.models.encoder_module import PerChannel, is_for_bytes
from genenc_core.run import parameters as run_parameters
from genenc_core.runtime import adaptation, describe

BY_NAME = "name:"
"""Before a name that could be a number."""
_PART = re.compile(r"(\d{1,6})(?::(\d{1,6}))?\Z")
LARGEST = 65535
"""Highest number of a channel in a file."""


def parse_channels(text: str) -> tuple[int, ...]:
    """Parse `3,2,1` or `0:6` (6 excluded), numbers from 0 in the order that the model gets; one may be repeated.

    Raises:
        InputError: another form, or too many or too high numbers.
    """
    chosen: list[int] = []
    for part in text.split(","):
        found = _PART.match(part.strip())
        if found is None:
            raise errors.InputError(
                f"--channels {text!r} is invalid: give numbers from 0, such as 3,2,1, or a range without its end, 0:6"
            )
        first = int(found[1])
        stop = first + 1 if found[2] is None else int(found[2])
        if stop <= first or stop > LARGEST + 1:
            raise errors.InputError(f"--channels {text!r} is invalid: {part.strip()!r} holds no channel")
        chosen += range(first, stop)
        if len(chosen) > spec.MOST_CHANNELS:
            raise errors.InputError(f"--channels {text!r} chooses more than {spec.MOST_CHANNELS} channels")
    return tuple(chosen)


def parse_names(text: str) -> tuple[str, ...] | None:
    """Return the names of `DAPI,GFP`; None if the text consists of numbers and ranges. `name:405` is a name.

    Raises:
        InputError: an empty name, or too many.
    """
    parts = [part.strip() for part in text.split(",")]
    if all(_PART.match(part) for part in parts):
        return None
    names = tuple(part.removeprefix(BY_NAME).strip() for part in parts)
    if not all(names) or len(names) > spec.MOST_CHANNELS:
        raise errors.InputError(
            f"--channels {text!r} is invalid: give numbers from 0, such as 3,2,1, a range without its end, 0:6, or "
            "names as the files state them, DAPI,GFP"
        )
    return names


def parse_value_range(text: str) -> tuple[tuple[float, float], ...]:
    """Parse `LOW,HIGH`, or such a pair per channel, one after the other.

    Raises:
        InputError: another form, or LOW is not below HIGH.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or len(values) % 2 or not all(map(math.isfinite, values)):
        raise errors.InputError(
            f"--value-range {text!r} is invalid: give LOW,HIGH, such as 0,10000, or such a pair per channel, all "
            "separated by commas"
        )
    pairs = tuple(zip(values[::2], values[1::2], strict=True))
    for low, high in pairs:
        if not low < high:
            raise errors.InputError(f"--value-range {text!r} is invalid: {low:g} is not below {high:g}")
    return pairs


def check(given: run_parameters.ExtractParameters) -> None:
    """Check the form of the options; raises `InputError`."""
    if given.channels is not None:
        _parsed(given.channels)
    if given.value_range is not None:
        parse_value_range(given.value_range)


def wanted_count(given: run_parameters.ExtractParameters) -> int | None:
    """Return how many channels are chosen; None if none are, so that the model says it."""
    return None if given.channels is None else len(_parsed(given.channels))


def _parsed(text: str) -> tuple[int, ...] | tuple[str, ...]:
    names = parse_names(text)
    return parse_channels(text) if names is None else names


def are_given(given: run_parameters.ExtractParameters) -> bool:
    """Return whether images are read as channels whatever the model is."""
    return given.channels is not None or given.value_range is not None


def normalisation(given: run_parameters.ExtractParameters, count: int) -> adaptation.Normalisation | None:
    """Return `--mean` and `--std` for so many channels; None without them. Raises as `adaptation.parse`."""
    return adaptation.parse(given.mean, given.std, channels=count, any_unit=given.value_range is not None)


def statistics(given: run_parameters.ExtractParameters) -> tuple[PerChannel, PerChannel] | None:
    """Return `--mean` and `--std` for a model that is built here, None without them.

    Raises:
        InputError: as in `adaptation.parse`.
    """
    if given.mean is None and given.std is None:
        return None
    count = wanted_count(given) or (given.mean or "").count(",") + 1
    # `of_run` checks their unit, once the range is known.
    found = adaptation.parse(given.mean, given.std, channels=count, any_unit=True)
    return None if found is None else (found.mean, found.std)


def of_run(given: run_parameters.ExtractParameters, found: spec.RuntimeModelSpec) -> spec.Channels | None:
    """Return the channels that a run reads for a model; None for 8-bit RGB.

    Raises:
        InputError: another number than the model's, a number of ranges that fits neither, or statistics that are not
            for values in [0, 1], without a range that says otherwise.
    """
    known = describe.preprocessing_of(found).channels
    if known is None and not are_given(given):
        return None
    count = found.inputs[0].shape[0]
    chosen, names = (known.chosen, known.names) if known else (None, None)
    if given.channels is not None:
        parsed, names = _parsed(given.channels), parse_names(given.channels)
        chosen = parse_channels(given.channels) if names is None else None
        if len(parsed) != count:
            raise errors.InputError(
                f"--channels {given.channels} chooses {len(parsed)}, but {found.model_id!r} takes {count}: give "
                f"{count} {'numbers' if names is None else 'names'}"
            )
    ranges = known.value_range if known else None
    if given.value_range is not None:
        ranges = parse_value_range(given.value_range)
        if len(ranges) not in (1, count):
            raise errors.InputError(
                f"--value-range {given.value_range} has {len(ranges)} pairs for {count} channels: give one, or one per "
                "channel"
            )
    _refuse_other_unit(found, ranges)
    return spec.Channels(count=count, chosen=chosen, names=names, value_range=ranges)


def _refuse_other_unit(found: spec.RuntimeModelSpec, ranges: Sequence[tuple[float, float]] | None) -> None:
    block = found.genenc
    if ranges is None and block is not None and block.mean and block.std and is_for_bytes(block.mean, block.std):
        raise errors.InputError(
            f"mean {list(block.mean)} and std {list(block.std)} of {found.model_id!r} are not for values in [0, 1]: if "
            "they are in the unit of the images, give --value-range 0,1, which takes values as they are; else divide "
            "both by the largest value"
        )


def without_model(given: run_parameters.ExtractParameters) -> spec.Channels | None:
    """Return the channels that are chosen, as if for a model of as many; None if none are.

    Raises:
        InputError: only a range is given, which does not say how many channels there are.
    """
    if given.channels is None:
        if given.value_range is not None:
            raise errors.InputError(
                f"--value-range {given.value_range} needs --channels, or a model, which says how many"
            )
        return None
    chosen, names = _parsed(given.channels), parse_names(given.channels)
    ranges = None if given.value_range is None else parse_value_range(given.value_range)
    if ranges is not None and len(ranges) not in (1, len(chosen)):
        raise errors.InputError(f"--value-range {given.value_range} has {len(ranges)} pairs for {len(chosen)} channels")
    numbers = parse_channels(given.channels) if names is None else None
    return spec.Channels(count=len(chosen), chosen=numbers, names=names, value_range=ranges)

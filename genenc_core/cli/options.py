"""Options that need more than a type: a TOML file under the flags, and sizes with words."""

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from genenc_core import errors, small_files, text
from genenc_core.models import trust

LARGEST_CONFIG = 2**20
SWITCHES = ("plain", "json")
"""Options of the command, which are no parameters of an extraction."""
_MODEL_FILES = (".json", ".toml", ".yaml", ".yml", ".pt", ".pt2", ".onnx")


def batch_size(given: str | None) -> int | Literal["auto"] | None:
    """Read `auto` or a number of images.

    Raises:
        InputError: another form.
    """
    if given is None or given == "auto":
        return given  # type: ignore[return-value]
    number = text.whole_number(given)
    if not number:
        raise errors.InputError(f"--batch-size {given!r} is neither auto nor a number of images of at least 1")
    return number


def layers(given: list[str] | None) -> tuple[str, ...] | None:
    """Read `-2,-1` or `layer2,layer4`, given once or several times.

    Raises:
        InputError: another form.
    """
    if not given:
        return None
    found = tuple(part.strip() for part in ",".join(given).split(","))
    if "" in found or len(set(found)) != len(found):
        raise errors.InputError(f"--layers {','.join(given)!r}: give names or indices with commas between, each once")
    return found


def _known_option(key: str, config: Path) -> str:
    """Return the parameter that a key of a config file names; the flags' own names count too."""
    from genenc_core.run.parameters import ExtractParameters

    known = [*ExtractParameters.model_fields, *SWITCHES]
    name = {"product": "products"}.get(key, key.replace("-", "_"))
    if name not in known:
        hint = text.nearest(name, known) or f"known: {', '.join(known)}"
        raise errors.InputError(f"--config {str(config)!r}: there is no option {key!r}; {hint}")
    return name


def _once_each(names: dict[str, str], found: dict[str, Any], config: Path) -> dict[str, Any]:
    """Return the options by their own names; `product` beside `products` would be one of them twice."""
    keys: dict[str, str] = {}
    for key, name in names.items():
        if keys.setdefault(name, key) != key:
            raise errors.InputError(f"--config {str(config)!r} gives {keys[name]!r} and {key!r}, which are one option")
    return {name: found[key] for key, name in names.items()}


def _refuse_trust(config: Path, found: dict[str, Any], flags: dict[str, Any]) -> None:
    """Leave the user's word for code to the command line: a file may be somebody else's."""
    if "trust" in found:
        raise errors.InputError(f"--config {str(config)!r} cannot give trust: say --trust on the command line")
    model = found.get("model")
    if isinstance(model, str) and flags.get("model") is None:
        trust.require(trust.dotted(model), who=f"--config {str(config)!r}", trust=bool(flags.get("trust")))


def refuse_more_images(images: str | None, more: Sequence[str]) -> None:
    """Refuse several images on the command line, as a shell makes of a glob without quotes.

    Raises:
        InputError: there are more.
    """
    if more:
        raise errors.InputError(
            f"IMAGES is one, and there are {1 + len(more)}: {images!r}, {more[0]!r}{', ...' if more[1:] else ''}. "
            "Quote a glob, so that the shell does not expand it ('photos/*.png'), or give the folder or a list"
        )


def merged(config: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a TOML file, overridden by the flags that were given; `plain` and `json` included.

    Relative paths in the file start at the file's folder, those of flags at the working directory.

    Raises:
        InputError: the file cannot be read or is not TOML, an unknown key, or no images, model or out in either.
    """
    found = {} if config is None else _read(config, flags)
    merged = {**found, **{key: value for key, value in flags.items() if value is not None}}
    for name in SWITCHES:
        if not isinstance(merged.setdefault(name, False), bool):
            raise errors.InputError(f"--config {str(config)!r}: {name} = {merged[name]!r} should be true or false")
    for name in ("images", "model", "out"):
        if name not in merged:
            shown = "IMAGES" if name == "images" else f"--{name}"
            raise errors.InputError(f"{shown} is missing: give it on the command line or in a --config file")
    return merged


def wants_json(config: Path | None) -> bool:
    """Whether a TOML file asks for JSON, as far as it can be read: its own faults are then answered in JSON too."""
    if config is None:
        return False
    try:
        written = small_files.read_text(config, most=LARGEST_CONFIG)
    except (OSError, ValueError, errors.GenencError):
        return False
    try:
        return tomllib.loads(written).get("json") is True
    except (ValueError, RecursionError):
        return re.search(r"^json\s*=\s*true\s*(#.*)?$", written, re.MULTILINE) is not None


def _read(config: Path, flags: dict[str, Any]) -> dict[str, Any]:
    try:
        found = tomllib.loads(small_files.read_text(config, most=LARGEST_CONFIG))
    except errors.InputError as error:
        raise errors.InputError(f"--config {str(config)!r} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        other = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}.get(config.suffix.lower())
        hint = f'; a config file is TOML, not {other}: one option a line, such as model = "resnet18"' if other else ""
        raise errors.InputError(f"--config {str(config)!r} is not TOML: {error}{hint}") from error
    once = _once_each({key: _known_option(key, config) for key in found}, found, config)
    named = {name: _from_file(name, value, config.parent) for name, value in once.items()}
    _refuse_trust(config, named, flags)
    return named


def _from_file(name: str, value: Any, folder: Path) -> Any:
    """Return an option's value with its relative paths made to start at the config file's folder."""
    if name == "models" and isinstance(value, list):
        return [_path(item, folder) for item in value]
    if name in ("images", "out", "points") and type(value) in (int, float):
        value = str(value)  # a folder named by a number, written without quotes
    if not isinstance(value, str):
        return value
    is_path = name in ("images", "out", "points")
    is_path |= name == "model" and ":" not in value and value.lower().endswith(_MODEL_FILES)
    is_path |= name == "weights" and value.partition(":")[0] not in ("pretrained", "random")
    return _path(value, folder) if is_path else value


def _path(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or not value or "://" in value:
        return value
    if value.startswith("~"):
        return os.path.expanduser(value)  # noqa: PTH111 -- a Path would drop the slash at the end
    return os.path.join(folder, value) if folder != Path() else value  # noqa: PTH118 -- likewise

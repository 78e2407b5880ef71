"""Options that need more than a type: a TOML file under the flags, and sizes with words."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from genenc_core import errors, small_files, text
from genenc_core.models import trust

LARGEST_CONFIG = 2**20


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

    known = [*ExtractParameters.model_fields]
    name = {"product": "products"}.get(key, key.replace("-", "_"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
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


def merged(config: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a TOML file, overridden by the flags that were given."""
    found: dict[str, Any] = {}
    if config is not None:
        try:
            found = tomllib.loads(small_files.read_text(config, most=LARGEST_CONFIG))
        except errors.InputError as error:
            raise errors.InputError(f"--config {str(config)!r} cannot be read: {error}") from error
        except (ValueError, RecursionError) as error:
            raise errors.InputError(f"--config {str(config)!r} is not TOML: {error}") from error
        found = _once_each({key: _known_option(key, config) for key in found}, found, config)
        _refuse_trust(config, found, flags)
    merged = {**found, **{key: value for key, value in flags.items() if value is not None}}
    for name in ("model", "out"):
        if name not in merged:
            raise errors.InputError(f"--{name} is missing: give it on the command line or in a --config file")
    return merged

"""A model file as names and values: TOML or YAML, small, and no larger once its aliases are written out."""

import tomllib
from pathlib import Path
from typing import Any

import yaml

from genenc_core import errors, small_files
from genenc_core.models import wording

LARGEST_BYTES = 2**16
DEEPEST = 64
LARGEST_NODES = 20_000
"""values of a YAML file with every alias written out"""


def content(path: Path) -> dict[str, Any]:
    """Return the names and values of a model file; nothing in it makes an object of any other class.

    Raises:
        InputError: it cannot be read, or holds no names and values; the reason without the file's name.
    """
    try:
        text = small_files.read_text(path, most=LARGEST_BYTES)
        _refuse_depth(text)
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else _yaml(text)
    except errors.InputError as error:
        raise errors.InputError(f"it cannot be read: {error}") from error
    except RecursionError as error:
        raise errors.InputError("it cannot be read: its values are nested too deeply.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise errors.InputError(f"it cannot be read: {wording.reason(error)}.") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise errors.InputError("it holds no names and values. Give task, backbone and decoder at least.")
    return found


def _refuse_depth(text: str) -> None:
    """Refuse brackets in brackets before they are parsed: YAML's reader takes time with the square of their depth."""
    depth = 0
    for char in text:
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth = max(depth - 1, 0)
        if depth > DEEPEST:
            raise errors.InputError(f"its values are nested too deeply: more than {DEEPEST} brackets are open.")


def _yaml(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        # Aliases are shared here; merging keys (`<<`) and writing JSON would copy what each stands for.
        if root is not None and _written_out(root, {}, set()) > LARGEST_NODES:
            raise errors.InputError(f"its aliases stand for more than {LARGEST_NODES} values")
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Return how many values a node stands for."""
    key = id(node)
    if key in open_nodes:
        raise errors.InputError("a value of it holds itself")
    if key not in known:
        open_nodes.add(key)
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[key] = 1 + sum(_written_out(part, known, open_nodes) for part in inner)
        open_nodes.discard(key)
    return known[key]

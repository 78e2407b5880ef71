"""Names of the Hugging Face hub, as people paste them: what they begin with, and timm's names that say the same."""

import re
from collections.abc import Sequence

_PREFIXES = ("hf-hub:", "hf_hub:", "hf://", "https://huggingface.co/", "huggingface.co/")
_OWN = frozenset({"timm", "torchvision", "genenc", "factory"})
"""Words before a slash that are sources here."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")


def is_one(name: str) -> bool:
    """Tell whether a name is one of the hub's: with its prefix or address, or `owner/model`."""
    if name.lower().startswith(_PREFIXES):
        return True
    owner = name.partition("/")[0]
    is_file = name.lower().endswith((".toml", ".yaml", ".yml", ".json"))
    return bool(_REPOSITORY.match(name)) and owner not in _OWN and not is_file


def split(name: str) -> tuple[str, str]:
    """Return the owner of a repository and its name; the owner is empty where none is stated."""
    for prefix in _PREFIXES:
        if name.lower().startswith(prefix):
            name = name[len(prefix) :]
    owner, _, bare = name.strip("/").rpartition("/")
    return owner, bare.partition("@")[0]


def with_its_words(name: str, known: Sequence[str], *, most: int = 5) -> list[str]:
    """Return the shortest of the known names that have all words of a name, `dinov2-small` -> `..._dinov2`.

    Words are what stands between hyphens, underscores and dots; where no name has all, the longest word counts alone.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    found = [item for item in known if words and all(word in item.lower() for word in words)]
    longest = max(words, key=len, default="")
    if not found and len(longest) > 2:
        found = [item for item in known if longest in item.lower()]
    return sorted(found, key=lambda item: (len(item), item))[:most]

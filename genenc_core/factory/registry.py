"""Registries of constructors by name, and registries of several sources with prefixes."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from genenc_core import errors

Constructor = Callable[..., Any]


class Source(Protocol):
    """A source of parts by name."""

    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Build the part."""

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the parameters that `build` passes on; None if they are unknown."""

    def includes_head(self, name: str) -> bool:
        """Return whether the part is a decoder that includes its head."""


class Registry:
    """Constructors by name; a name must be unregistered before it is registered again."""

    def __init__(self, constructors: Mapping[str, Constructor] | None = None) -> None:
        self._constructors: dict[str, Constructor] = dict(constructors or {})

    def register(self, constructor: Constructor, *, name: str | None = None) -> Constructor:
        """Register a class or function under `name` or its own name; returns it, for use as a decorator.

        Raises:
            InputError: not callable, or the name is already registered.
        """
        if not callable(constructor):
            raise errors.InputError(f"cannot register {constructor!r}: it is not a callable class or function.")
        key = name or constructor.__name__
        if key in self:
            raise errors.InputError(f"the name {key!r} is already registered; unregister({key!r}) first to replace it.")
        self._constructors[key] = constructor
        return constructor

    def unregister(self, name: str) -> None:
        """Remove a name.

        Raises:
            InputError: it is not registered.
        """
        if name not in self._constructors:
            raise errors.InputError(f"the name {name!r} is not registered.{nearest(name, self._constructors)}")
        del self._constructors[name]

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call the constructor; its exceptions are propagated.

        Raises:
            InputError: unknown name.
        """
        return self.find(name)(*args, **kwargs)

    def find(self, name: str) -> Constructor:
        """Return the constructor of `name`.

        Raises:
            InputError: unknown name; the message lists the closest ones.
        """
        if name not in self._constructors:
            raise errors.InputError(f"{name!r} is not registered.{nearest(name, self)}")
        return self._constructors[name]

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the constructor's parameters."""
        return inspect.signature(self.find(name))

    def includes_head(self, name: str) -> bool:
        """Return the constructor's attribute `includes_head`, by default False."""
        return bool(getattr(self.find(name), "includes_head", False))

    def __contains__(self, name: object) -> bool:
        return name in self._constructors

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._constructors))

    def __len__(self) -> int:
        return len(self._constructors)


class MultiSourceRegistry:
    """Ordered sources, each with a prefix: `timm_resnet18` is `resnet18` of the source `timm`.

    If a name has the prefix of a source that knows the rest, that source is used; otherwise the first source that
    knows the whole name, so that every name is reachable.
    """

    def __init__(
        self, kind: str, sources: Mapping[str, Source], *, aliases: Mapping[str, str] | None = None, remedy: str = ""
    ) -> None:
        self.kind = kind
        self.remedy = remedy
        """remedy for unknown names: a sentence with a leading space"""
        self._sources: dict[str, Source] = {}
        self._aliases = dict(aliases or {})
        for prefix, source in sources.items():
            self.register_source(prefix, source)

    def register_source(self, prefix: str, source: Source) -> None:
        """Append a source.

        Raises:
            InputError: the prefix is already registered, empty, or contains an underscore.
        """
        if not prefix or "_" in prefix:
            raise errors.InputError(f"the prefix {prefix!r} of a source must be a word without underscore.")
        if prefix in self._sources or prefix in self._aliases:
            raise errors.InputError(f"a source {prefix!r} of {self.kind}s is already registered.")
        self._sources[prefix] = source

    def register(self, constructor: Constructor, *, name: str | None = None) -> Constructor:
        """Register a constructor in the first source; see `Registry.register`."""
        return self._first_registry().register(constructor, name=name)

    def unregister(self, name: str) -> None:
        """Remove a constructor from the first source; see `Registry.unregister`."""
        self._first_registry().unregister(name)

    def split(self, name: str) -> tuple[str, str]:
        """Return the prefix of the source that has `name`, and the name there.

        Raises:
            InputError: unknown name; the message lists the closest ones.
        """
        head, _, rest = name.partition("_")
        head = self._aliases.get(head, head)
        if head in self._sources and rest in self._sources[head]:
            return head, rest
        for prefix, source in self._sources.items():
            if name in source:
                return prefix, name
        near = nearest(name, self) or nearest(rest, [item for source in self._sources.values() for item in source])
        raise errors.InputError(f"there is no {self.kind} {name!r} in {', '.join(self._sources)}.{near}{self.remedy}")

    def canonical(self, name: str) -> str:
        """Return `name` with its source's prefix, which is unambiguous whatever else is installed."""
        return "_".join(self.split(name))

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Build `name` in its source; exceptions of the constructor are propagated.

        Raises:
            InputError: unknown name.
        """
        prefix, bare = self.split(name)
        return self._sources[prefix].build(bare, *args, **kwargs)

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the parameters of the constructor of `name`; None if they are unknown."""
        prefix, bare = self.split(name)
        return self._sources[prefix].signature(bare)

    def includes_head(self, name: str) -> bool:
        """Return whether the decoder `name` includes its head."""
        prefix, bare = self.split(name)
        return self._sources[prefix].includes_head(bare)

    def find_registry(self, name: str) -> Source:
        """Return the source that has `name`.

        Raises:
            InputError: unknown name.
        """
        return self._sources[self.split(name)[0]]

    def __getitem__(self, name: str) -> Source:
        return self.find_registry(name)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self.split(name)
        except errors.InputError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return (f"{prefix}_{name}" for prefix, source in self._sources.items() for name in source)

    def __len__(self) -> int:
        return sum(len(source) for source in self._sources.values())

    def _first_registry(self) -> Registry:
        first = next(iter(self._sources.values()))
        if not isinstance(first, Registry):
            raise errors.InputError(f"constructors cannot be registered: the first source of {self.kind}s is fixed.")
        return first


def nearest(name: str, known: Any) -> str:
    """Return a sentence with the names closest to `name`, or all if they are few; empty if there are none."""
    names = list(known)
    folded = {item.lower(): item for item in names}
    near = difflib.get_close_matches(name.lower(), folded, n=5, cutoff=0.6)
    if near:
        return f" The closest names are: {', '.join(folded[item] for item in near)}."
    return f" Known: {', '.join(sorted(names))}." if 0 < len(names) <= 30 else ""

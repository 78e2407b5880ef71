"""Registries: names to constructors in one source, and several sources under prefixes."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from genenc_core import errors

Constructor = Callable[..., Any]


class Source(Protocol):
    """A place that builds parts by name."""

    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Build the part."""

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the parameters that `build` passes on; None when only the constructor itself knows."""

    def includes_head(self, name: str) -> bool:
        """Tell whether the part is a decoder that needs no head after it."""


class Registry:
    """Constructors by name. A name is taken once: `unregister` comes before another constructor gets it."""

    def __init__(self, constructors: Mapping[str, Constructor] | None = None) -> None:
        self._constructors: dict[str, Constructor] = dict(constructors or {})

    def register(self, constructor: Constructor, *, name: str | None = None) -> Constructor:
        """Add a class or function under its own name or `name`; return it, so that it serves as a decorator.

        Raises:
            InputError: not callable, or the name is taken.
        """
        if not callable(constructor):
            raise errors.InputError(f"cannot register {constructor!r}: it is not a callable class or function.")
        key = name or constructor.__name__
        if key in self:
            raise errors.InputError(f"the name {key!r} is registered already; unregister({key!r}) first to replace it.")
        self._constructors[key] = constructor
        return constructor

    def unregister(self, name: str) -> None:
        """Forget a name.

        Raises:
            InputError: nobody registered it.
        """
        if name not in self._constructors:
            raise errors.InputError(f"the name {name!r} is not registered.{nearest(name, self._constructors)}")
        del self._constructors[name]

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call the constructor; whatever it raises comes out as it is.

        Raises:
            InputError: unknown name.
        """
        return self.find(name)(*args, **kwargs)

    def find(self, name: str) -> Constructor:
        """Return the constructor of `name`.

        Raises:
            InputError: unknown name; the nearest are offered.
        """
        if name not in self._constructors:
            raise errors.InputError(f"there is no {name!r} here.{nearest(name, self)}")
        return self._constructors[name]

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the constructor's parameters."""
        return inspect.signature(self.find(name))

    def includes_head(self, name: str) -> bool:
        """Return the constructor's attribute `includes_head`; without one it needs a head."""
        return bool(getattr(self.find(name), "includes_head", False))

    def __contains__(self, name: object) -> bool:
        return name in self._constructors

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._constructors))

    def __len__(self) -> int:
        return len(self._constructors)


class MultiSourceRegistry:
    """Sources in order, each under a prefix: `timm_resnet18` is `resnet18` of the source `timm`.

    A prefix that names a source, with a name that this source has, means that source; any other name is looked up
    whole, and the first source that has it wins, so that no name is out of reach.
    """

    def __init__(
        self, kind: str, sources: Mapping[str, Source], *, aliases: Mapping[str, str] | None = None, remedy: str = ""
    ) -> None:
        self.kind = kind
        self.remedy = remedy
        """what to do where no source has a name, as a sentence after a space"""
        self._sources: dict[str, Source] = {}
        self._aliases = dict(aliases or {})
        for prefix, source in sources.items():
            self.register_source(prefix, source)

    def register_source(self, prefix: str, source: Source) -> None:
        """Add a source behind the others.

        Raises:
            InputError: the prefix is taken, or holds an underscore or nothing.
        """
        if not prefix or "_" in prefix:
            raise errors.InputError(f"a source's prefix {prefix!r} must be a word without underscore.")
        if prefix in self._sources or prefix in self._aliases:
            raise errors.InputError(f"a source {prefix!r} of {self.kind}s is registered already.")
        self._sources[prefix] = source

    def register(self, constructor: Constructor, *, name: str | None = None) -> Constructor:
        """Add a constructor of your own to the first source; see `Registry.register`."""
        return self._own().register(constructor, name=name)

    def unregister(self, name: str) -> None:
        """Take a constructor out of the first source; see `Registry.unregister`."""
        self._own().unregister(name)

    def split(self, name: str) -> tuple[str, str]:
        """Return the prefix of the source that has `name`, and the name there.

        Raises:
            InputError: no source has it; the nearest names are offered.
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
        """Return `name` with its source's prefix, which means the same whatever else is installed."""
        return "_".join(self.split(name))

    def build(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Build `name` in the source that has it; what its constructor raises comes out as it is.

        Raises:
            InputError: no source has it.
        """
        prefix, bare = self.split(name)
        return self._sources[prefix].build(bare, *args, **kwargs)

    def signature(self, name: str) -> inspect.Signature | None:
        """Return the parameters of the constructor of `name`, as far as they are known."""
        prefix, bare = self.split(name)
        return self._sources[prefix].signature(bare)

    def includes_head(self, name: str) -> bool:
        """Tell whether the decoder `name` needs no head after it."""
        prefix, bare = self.split(name)
        return self._sources[prefix].includes_head(bare)

    def find_registry(self, name: str) -> Source:
        """Return the source that has `name`.

        Raises:
            InputError: none has it.
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

    def _own(self) -> Registry:
        first = next(iter(self._sources.values()))
        if not isinstance(first, Registry):
            raise errors.InputError(f"the first source of {self.kind}s takes no constructors of yours.")
        return first


def nearest(name: str, known: Any) -> str:
    """Return a sentence that offers the names most like `name`; nothing when none is."""
    names = list(known)
    folded = {item.lower(): item for item in names}
    near = difflib.get_close_matches(name.lower(), folded, n=5, cutoff=0.6)
    if near:
        return f" The nearest names are: {', '.join(folded[item] for item in near)}."
    return f" Known: {', '.join(sorted(names))}." if 0 < len(names) <= 30 else ""

"""Registry of models by id: registered RuntimeModelSpec files, and all names of genenc, torchvision and timm."""

import difflib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genenc_core import errors, spec
from genenc_core.models import resolve, shapes
from genenc_core.runtime import adaptation, backends, describe, general_encoder

Source = Literal["json", spec.SourceKind]


class RegistrationError(errors.SpecError):
    """A spec file that violates rules, with WhiskerToolbox's wording."""

    def __init__(self, path: Path, problems: tuple[str, ...]) -> None:
        super().__init__(str(path), problems)
        listed = "".join(f" {item};" for item in problems[: self.shown])
        self.args = (f"model spec {str(path)!r}: Validation failed:{listed}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Description of a model without its weights; slots and preprocessing are in the spec."""

    model_id: str
    source: Source
    spec: spec.RuntimeModelSpec
    path: Path | None = None
    """the spec's file; None for a name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """Result of registering a folder: the registered ids, and problems by file name."""

    registered: tuple[str, ...]
    problems: Mapping[str, str]


@dataclass(slots=True)
class _Entry:
    spec: spec.RuntimeModelSpec
    path: Path | None
    others: list[Path] = field(default_factory=list)
    """other files of a folder with the same id"""


class ModelRegistry:
    """Thread-safe registry of models by id; instances share no state.

    A registered id is only replaced with `replace`, because results refer to ids. Registered ids take precedence over
    names of genenc, torchvision and timm; `torchvision/NAME` always refers to the source.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}

    def register(self, model_spec: spec.RuntimeModelSpec, *, replace: bool = False) -> str:
        """Register a spec with absolute paths under its model_id.

        Raises:
            SpecError: it violates rules; all are listed.
            InputError: the id is already registered, without `replace`.
        """
        model_spec.check()
        return self._add(model_spec, None, replace=replace)

    def register_from_json(self, path: Path, *, replace: bool = False) -> str:
        """Parse a spec file, check its rules and register it; return its id.

        Raises:
            SpecError: unreadable, unparsable, or (`RegistrationError`, "Validation failed:") invalid.
            InputError: the id is already registered, without `replace`.
        """
        return self._add(_read(path), path, replace=replace)

    def register_folder(self, folder: Path) -> FolderReport:
        """Register all `*.json` files of a folder; invalid ones are reported by name and skipped.

        If several files have the same id, using that id raises an error that names them.

        Raises:
            InputError: no such folder.
        """
        if not folder.is_dir():
            raise errors.InputError(f"there is no folder {str(folder)!r} of model specs: give one with --models DIR.")
        registered: list[str] = []
        problems: dict[str, str] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                registered.append(self._add_from_folder(path))
            except errors.InputError as error:
                problems[path.name] = str(error)
        return FolderReport(registered=tuple(registered), problems=problems)

    def unregister(self, model_id: str) -> bool:
        """Remove a registered id; return whether it was registered."""
        with self._lock:
            return self._entries.pop(model_id, None) is not None

    def registered(self) -> list[str]:
        """Return the registered ids, sorted."""
        with self._lock:
            return sorted(self._entries)

    def ids(self) -> list[str]:
        """Return all ids, registered ones and names, sorted."""
        return sorted({*self.registered(), *resolve.model_names()})

    def find(self, model_id: str) -> ModelInfo | None:
        """Return the model registered under an id; None if there is none.

        Raises:
            InputError: several files have the id; they are named.
        """
        with self._lock:
            entry = self._entries.get(model_id)
        if entry is None:
            return None
        if entry.others:
            files = ", ".join(str(path) for path in (entry.path, *entry.others))
            raise errors.InputError(
                f"model {model_id!r} is in {len(entry.others) + 1} specs: {files}. Give the file of the one to use, or "
                "change one model_id."
            )
        return ModelInfo(model_id=model_id, source="json", spec=entry.spec, path=entry.path)

    def info(self, model_id: str, *, trust: bool = False) -> ModelInfo:
        """Describe a model without loading, downloading or computing any weights; `trust` as in `create`.

        Raises:
            InputError: an unknown id (with the closest ones), an ambiguous id, or the model's code needs real tensors.
        """
        return self.find(model_id) or _info_of_name(self._known(model_id), trust=trust)

    def create(
        self,
        model_id: str,
        *,
        weights: str | None = None,
        image_size: tuple[int, int] | None = None,
        normalised: adaptation.Normalisation | None = None,
        device: str = "auto",
        trust: bool = False,
    ) -> backends.Encoder:
        """Create an encoder, ready to run; it shares no weights with others.

        `weights` and `image_size` are for names (default: `pretrained` and the model's own size); for
        `general_encoder` the weights are the artifact. `normalised` is for artifacts that expect normalised images.
        `trust` allows loading an artifact of unknown digest, and importing code that a spec or a model file names.

        Raises:
            InputError: as `info`; options that do not apply to a spec; or as `load_encoder` and `build_encoder`.
        """
        if image_size is not None and (isinstance(image_size, str | int) or len(image_size) != 2):
            raise errors.InputError(f"image_size {image_size!r} is not (height, width): give two numbers of pixels")
        registered = self.find(model_id)
        if registered is not None:
            if weights is not None or image_size is not None:
                raise errors.InputError(
                    f"model {model_id!r} is a spec with its own weights and size; export it again to change them."
                )
            model_spec = registered.spec if normalised is None else adaptation.applied(registered.spec, normalised)
            return backends.load_encoder(model_spec, device=device, trust=trust)
        if model_id == general_encoder.MODEL_ID:
            described = general_encoder.spec_of(
                Path(weights or ""), image_size=image_size, normalised=normalised, trust=trust
            )
            return backends.load_encoder(described, device=device, trust=trust)
        if normalised is not None:
            raise errors.InputError(f"model {model_id!r} normalises its images itself: omit `normalised`.")
        request = resolve.ModelRequest(
            name=self._known(model_id), weights=weights or "pretrained", image_size=image_size, trust=trust
        )
        return backends.eager_encoder(resolve.build_encoder(request), device=device)

    def _known(self, name: str) -> str:
        """Return `name` if a source knows it.

        Raises:
            InputError: unknown name; the message lists close registered ids and names.
        """
        try:
            resolve.resolve_name(name)
        except errors.InputError as error:
            near = difflib.get_close_matches(name, self.registered(), n=5, cutoff=0.5)
            hint = f" Close ids of specs: {', '.join(near)}." if near else ""
            raise errors.InputError(f"{error}{hint}") from error
        return name

    def _add_from_folder(self, path: Path) -> str:
        model_spec = _read(path)
        with self._lock:
            known = self._entries.get(model_spec.model_id)
            if known is None or known.path is None or known.path.resolve() == path.resolve():
                return self._add(model_spec, path, replace=known is not None and known.path is not None)
            known.others.append(path)
        raise errors.InputError(f"model {model_spec.model_id!r} is also in {str(known.path)!r}")

    def _add(self, model_spec: spec.RuntimeModelSpec, path: Path | None, *, replace: bool) -> str:
        with self._lock:
            known = self._entries.get(model_spec.model_id)
            if known is not None and not replace:
                where = f" (from {str(known.path)!r})" if known.path else ""
                raise errors.InputError(
                    f"model {model_spec.model_id!r} is already registered{where}: unregister it first, or pass "
                    "replace=True."
                )
            self._entries[model_spec.model_id] = _Entry(model_spec, path)
        return model_spec.model_id


def folders(paths: tuple[str, ...]) -> tuple[ModelRegistry, dict[str, str]]:
    """Return a registry of the specs in the given folders, and the problems by file.

    Raises:
        InputError: no such folder.
    """
    registry, problems = ModelRegistry(), dict[str, str]()
    for folder in dict.fromkeys(map(Path, paths)):
        report = registry.register_folder(folder)
        problems |= {str(folder / name): problem for name, problem in report.problems.items()}
    return registry, problems


def _read(path: Path) -> spec.RuntimeModelSpec:
    model_spec = spec.RuntimeModelSpec.from_json_file(path.absolute())
    problems = spec.file_problems(model_spec)
    if problems:
        raise RegistrationError(path, tuple(problems))
    return model_spec


def _info_of_name(name: str, *, trust: bool) -> ModelInfo:
    measured = shapes.measure(name, trust=trust)
    return ModelInfo(model_id=name, source=measured.kind, spec=describe.spec_of_name(measured, model_id=name))

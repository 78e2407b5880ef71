"""Models by id: RuntimeModelSpec files that were registered, and every name of genenc, torchvision and timm."""

import difflib
import importlib.metadata
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from genenc_core import errors, spec
from genenc_core.export import backends, general, normalisation
from genenc_core.models import shapes, sources

Source = Literal["json", spec.SourceKind]


class RegistrationError(errors.SpecError):
    """A spec file that breaks rules, in WhiskerToolbox's words."""

    def __init__(self, path: Path, problems: tuple[str, ...]) -> None:
        super().__init__(str(path), problems)
        told = "".join(f" {item};" for item in problems[: self.shown])
        self.args = (f"model spec {str(path)!r}: Validation failed:{told}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of a model without its weights; slots and preprocessing are in the spec."""

    model_id: str
    source: Source
    spec: spec.RuntimeModelSpec
    path: Path | None = None
    """the spec's file; None for a name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What came of a folder: the ids registered, and per file name why it was not."""

    registered: tuple[str, ...]
    problems: Mapping[str, str]


@dataclass(slots=True)
class _Entry:
    spec: spec.RuntimeModelSpec
    path: Path | None
    others: list[Path] = field(default_factory=list)
    """files of a folder that claim the same id"""


class ModelRegistry:
    """Ids to models; every method may be called from several threads, and instances share nothing.

    One rule for duplicates: an id that is registered stays what it is unless `replace` is given, because results carry
    ids. A registered id goes before a name of genenc, torchvision or timm; `torchvision/NAME` reaches that one always.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}

    def register(self, model_spec: spec.RuntimeModelSpec, *, replace: bool = False) -> str:
        """Register a spec whose paths can be opened from anywhere, under its model_id.

        Raises:
            SpecError: it breaks a rule; all are listed.
            InputError: the id is taken, and `replace` was not given.
        """
        model_spec.check()
        return self._add(model_spec, None, replace=replace)

    def register_from_json(self, path: Path, *, replace: bool = False) -> str:
        """Parse a spec file, check its rules and register it; return its id.

        Raises:
            SpecError: unreadable, unparsable, or (`RegistrationError`, "Validation failed:") breaking rules.
            InputError: the id is taken, and `replace` was not given.
        """
        return self._add(_read(path), path, replace=replace)

    def register_folder(self, folder: Path) -> FolderReport:
        """Register every `*.json` of a folder; one that cannot be is reported by name and stops no other.

        Two files with the same id are both kept in mind: using that id is an error that names them.

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
        """Forget a registered id; return whether there was one."""
        with self._lock:
            return self._entries.pop(model_id, None) is not None

    def registered(self) -> list[str]:
        """Return the registered ids, sorted."""
        with self._lock:
            return sorted(self._entries)

    def ids(self) -> list[str]:
        """Return every id: the registered ones and all names, sorted."""
        return sorted({*self.registered(), *sources.model_names()})

    def find(self, model_id: str) -> ModelInfo | None:
        """Return the spec registered under an id; None: there is none, and it may be a name.

        Raises:
            InputError: two files claim the id; both are named.
        """
        with self._lock:
            entry = self._entries.get(model_id)
        if entry is None:
            return None
        if entry.others:
            files = ", ".join(str(path) for path in (entry.path, *entry.others))
            raise errors.InputError(
                f"model {model_id!r} is in {len(entry.others) + 1} specs: {files}. Give the file of the one you mean, "
                "or change one model_id."
            )
        return ModelInfo(model_id=model_id, source="json", spec=entry.spec, path=entry.path)

    def info(self, model_id: str, *, trust: bool = False) -> ModelInfo:
        """Describe a model without loading, downloading or computing any weights; `trust` as in `create`.

        Raises:
            InputError: an unknown id (the nearest are offered), one in two specs, or a model whose code needs numbers.
        """
        return self.find(model_id) or _info_of_name(self._known(model_id), trust=trust)

    def create(
        self,
        model_id: str,
        *,
        weights: str | None = None,
        image_size: tuple[int, int] | None = None,
        normalised: normalisation.Normalisation | None = None,
        device: str = "auto",
        trust: bool = False,
    ) -> backends.Encoder:
        """Return a new encoder, ready to run; it shares no weights with any other.

        `weights` and `image_size` are for names (`pretrained` and the model's own size without them); for
        `general_encoder` the weights are the artifact. `normalised` is for artifacts that expect it. `trust`
        loads an artifact of unknown digest, and imports code that a spec or a model file names.

        Raises:
            InputError: as `info`; options that do not go with a spec; or as `load_encoder` and `build_encoder`.
        """
        found = self.find(model_id)
        if found is not None:
            if weights is not None or image_size is not None:
                raise errors.InputError(
                    f"model {model_id!r} is a spec, which has its own weights and size; export it again with others."
                )
            wanted = found.spec if normalised is None else normalisation.applied(found.spec, normalised)
            return backends.load_encoder(wanted, device=device, trust=trust)
        if model_id == general.MODEL_ID:
            described = general.spec_of(Path(weights or ""), image_size=image_size, normalised=normalised, trust=trust)
            return backends.load_encoder(described, device=device, trust=trust)
        if normalised is not None:
            raise errors.InputError(f"model {model_id!r} normalises its images by itself: leave `normalised` out.")
        request = sources.ModelRequest(
            name=self._known(model_id), weights=weights or "pretrained", image_size=image_size, trust=trust
        )
        return backends.eager_encoder(sources.build_encoder(request), device=device)

    def _known(self, name: str) -> str:
        """Return a name that a source has.

        Raises:
            InputError: none has it; near registered ids and near names are offered.
        """
        try:
            sources.resolve_name(name)
        except errors.InputError as error:
            near = difflib.get_close_matches(name, self.registered(), n=5, cutoff=0.5)
            hint = f" Near ids of specs: {', '.join(near)}." if near else ""
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
                    f"model {model_spec.model_id!r} is registered already{where}: unregister it first, or say that it "
                    "is to be replaced."
                )
            self._entries[model_spec.model_id] = _Entry(model_spec, path)
        return model_spec.model_id


def folders(paths: tuple[str, ...]) -> tuple[ModelRegistry, dict[str, str]]:
    """Return a registry of the specs in some folders, and the problems by file.

    Raises:
        InputError: no such folder.
    """
    registry, problems = ModelRegistry(), dict[str, str]()
    for folder in dict.fromkeys(map(Path, paths)):
        found = registry.register_folder(folder).problems
        problems |= {str(folder / name): problem for name, problem in found.items()}
    return registry, problems


def _read(path: Path) -> spec.RuntimeModelSpec:
    model_spec = spec.RuntimeModelSpec.from_json_file(path.absolute())
    problems = spec.file_problems(model_spec)
    if problems:
        raise RegistrationError(path, tuple(problems))
    return model_spec


def _info_of_name(name: str, *, trust: bool) -> ModelInfo:
    found = shapes.measure(name, trust=trust)
    size = found.preprocessing
    image = spec.SlotSpec(name="image", shape=(3, size.height, size.width), recommended_encoder="ImageEncoder")
    described = spec.RuntimeModelSpec(
        model_id=name,
        display_name=f"{found.kind}/{found.name}",
        batch_mode=spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=1, max=0)),
        inputs=(image,),
        outputs=found.outputs,
        recommended_post_encoder="global_avg_pool",
        genenc=spec.GenencBlock(
            source=spec.SourceInfo(kind=found.kind, name=found.name, weights="pretrained"),
            parameters=found.parameters,
            preprocessing=size,
            mean=found.mean,
            std=found.std,
            genenc_version=importlib.metadata.version("genenc"),
        ),
    )
    return ModelInfo(model_id=name, source=found.kind, spec=described)

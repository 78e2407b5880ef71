"""Model files of a run: digests, copies in the run folder, and paths."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from genenc_core import errors, spec
from genenc_core.run import records
from genenc_core.run.folder import MODEL_FOLDER, MODEL_SPEC, RunFolder
from genenc_core.runtime import loading
from genenc_core.store import run_store
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import Root, is_remote, open_objects
from genenc_core.system import digests, files


def artifact_digests(found: spec.RuntimeModelSpec) -> dict[int, str]:
    """Compute the sha256 of every artifact file of a spec, ignoring digests in the spec.

    Keys as in `loading.artifact_files`: batch sizes of variants, 0 for a single artifact.
    """
    artifacts = loading.artifact_files(found)
    for file in artifacts.values():
        if not file.path.is_file():
            raise errors.InputError(
                f"model spec {found.model_id!r}: its artifact {str(file.path)!r} does not exist: put it back, or "
                "export the model again"
            )
    return {size: digests.ARTIFACT.hex_of_file(file.path) for size, file in sorted(artifacts.items())}


def identity_digest(found: Mapping[int, str] | None) -> str | None:
    """Return the digest of the artifact, or one over all variants' digests; None for an eager model."""
    if found is None:
        return None
    if set(found) <= {0}:
        return found.get(0)
    return digests.ARTIFACT.hex_of_json({str(size): digest for size, digest in found.items()})


def stamps(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return path, modification time and size of the files that exist, for cache keys; runs compare digests."""
    found = ((path, path.stat()) for path in paths if path.is_file())
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in found)


def localised(found: spec.RuntimeModelSpec, run_folder: Path, *, eager: bool) -> spec.RuntimeModelSpec:
    """Copy the artifacts or the weights file into the run folder; return the spec with relative paths."""
    if eager:
        file = _weights_file(found, Path())
        return found if file is None else _with_weights(found, _copied(file, run_folder, file.name))
    if not found.weights_variants:
        path = Path(found.weights_path or "")
        return found.model_copy(update={"weights_path": _copied(path, run_folder, path.name)}) if path.name else found
    names = [Path(item.path).name for item in found.weights_variants]
    if len(set(names)) < len(names):
        names = [f"b{item.batch_size}_{name}" for item, name in zip(found.weights_variants, names, strict=True)]
    variants = tuple(
        item.model_copy(update={"path": _copied(Path(item.path), run_folder, name)})
        for item, name in zip(found.weights_variants, names, strict=True)
    )
    smallest = min(variants, key=lambda item: item.batch_size)
    update = {"weights_variants": variants, "weights_path": smallest.path, "backend": smallest.backend}
    return found.model_copy(update=update)


def take_over(like: RunFolder, objects: local.LocalObjects, *, on_server: bool) -> None:
    """Give a new run folder the spec and the model's files of another run, as hard links where that is possible.

    `on_server`: only the spec; `copy_on_server` follows when the folder is uploaded.

    Raises:
        InputError: the new folder cannot be written.
        StoreError: a file of the other run cannot be read.
    """
    with run_store.read_errors(like.root):
        text = like.objects.read(MODEL_SPEC).decode()
    if not on_server:
        source = local.LocalObjects(like.model_files())
        for name, _ in source.walk(MODEL_FOLDER) if source.kind(MODEL_FOLDER) else ():
            _copied(source.path(f"{MODEL_FOLDER}/{name}"), objects.root, name, write=files.link_or_copy)
    records.write_text(objects, MODEL_SPEC, text)


def recorded(run: RunFolder) -> dict[str, tuple[int, str]]:
    """Return size and sha256 of the model's files of a run, by key; {} if they were not recorded."""
    return {key: found for key, found in run.store.files.items() if key.startswith(f"{MODEL_FOLDER}/")}


def are_on_server(like: RunFolder, root: Root) -> bool:
    """Return whether a new run can get the model files of another one by `copy_on_server`."""
    return is_remote(root) and str(root).rpartition("/")[0] == like.root.rpartition("/")[0] and bool(like.store.files)


def copy_on_server(like: RunFolder, root: Root) -> None:
    """Copy the model's files of a run on S3 to a new one in the same folder; their bytes stay on the server."""
    above, _, source = like.root.rpartition("/")
    objects, target = open_objects(above), str(root).rpartition("/")[2]
    for key in recorded(like):
        objects.move(f"{source}/{key}", f"{target}/{key}")


def weights(run: RunFolder, given: str) -> str:
    """Return the file of a run's weights: the one given, or the run's own copy if that is gone or another file now.

    Weights that are no file are returned as given.
    """
    found = spec.RuntimeModelSpec.from_json(run.objects.read(MODEL_SPEC).decode())
    source = found.genenc.source if found.genenc else None
    key = found.weights_path if source is None else source.weights if run.backend == "eager" else None
    expected = recorded(run).get(key or "")
    if key is None or expected is None or (Path(given).is_file() and files.digest(Path(given)) == expected):
        return given
    return str(run.model_files() / key)


def read_run_spec(path: Path) -> spec.RuntimeModelSpec:
    """Read a run folder's spec, with absolute paths."""
    path = path.absolute()
    found = spec.RuntimeModelSpec.from_json_file(path)
    file = _weights_file(found, path.parent)
    return found if file is None else _with_weights(found, str(file))


def _weights_file(found: spec.RuntimeModelSpec, folder: Path) -> Path | None:
    """Return an eager model's weights file, resolved against `folder`; None if its weights are not a file."""
    source = found.genenc.source if found.genenc else None
    file = None if source is None else folder / source.weights
    return file if file is not None and file.is_file() else None


def _with_weights(found: spec.RuntimeModelSpec, weights: str) -> spec.RuntimeModelSpec:
    """Return the spec with another weights path."""
    assert found.genenc is not None
    assert found.genenc.source is not None
    source = found.genenc.source.model_copy(update={"weights": weights})
    return found.model_copy(update={"genenc": found.genenc.model_copy(update={"source": source})})


def _copied(path: Path, run_folder: Path, name: str, *, write: Callable[[Path, Path], None] = files.copy) -> str:
    """Copy a file into the run's model folder atomically; return its path relative to the run folder."""
    target = run_folder / MODEL_FOLDER / name
    try:
        local.LocalObjects(run_folder).make_folder(MODEL_FOLDER)
        if write is files.link_or_copy:
            target.unlink(missing_ok=True)  # renaming a link of a file to another link of it would leave both
        files.replace(target, functools.partial(write, path))
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        raise errors.InputError(f"cannot copy the model's file {str(path)!r} into the run folder: {error}") from error
    return f"{MODEL_FOLDER}/{name}"

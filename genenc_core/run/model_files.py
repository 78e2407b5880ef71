"""The files that a run's model needs: their digests, their copies in the run folder, and their paths there."""

import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from genenc_core import errors, spec
from genenc_core.export import artifacts, loading
from genenc_core.provenance import environment
from genenc_core.run.folder import MODEL_FOLDER
from genenc_core.store import files, local


def artifact_digests(found: spec.RuntimeModelSpec) -> dict[int, str]:
    """Return the sha256 of every file that runs a spec, as the file is, whatever the spec says.

    Keys are as in `loading.artifact_files`: batch sizes of variants, 0 for the one artifact.
    """
    files = loading.artifact_files(found)
    for file in files.values():
        if not file.path.is_file():
            raise errors.InputError(
                f"model spec {found.model_id!r}: its artifact {str(file.path)!r} is not there: put it back, or export "
                "again"
            )
    return {size: artifacts.file_sha256(file.path) for size, file in sorted(files.items())}


def identity_digest(digests: Mapping[int, str] | None) -> str | None:
    """Return the digest of the artifact, or one over those of all variants; None for an eager model, without any."""
    if digests is None:
        return None
    if set(digests) <= {0}:
        return digests.get(0)
    return environment.digest({str(size): digest for size, digest in digests.items()})


def stamps(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when one of the files is replaced: path, time of change and size; those not there left out.

    For what is kept in memory of files; a run compares digests.
    """
    found = ((path, path.stat()) for path in paths if path.is_file())
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in found)


def localised(found: spec.RuntimeModelSpec, run_folder: Path, *, eager: bool) -> spec.RuntimeModelSpec:
    """Copy the artifacts or the weights file into the run folder; return the spec with paths relative to it."""
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


def read_run_spec(path: Path) -> spec.RuntimeModelSpec:
    """Return a run folder's spec with paths that can be opened from anywhere."""
    path = path.absolute()
    found = spec.RuntimeModelSpec.from_json_file(path)
    file = _weights_file(found, path.parent)
    return found if file is None else _with_weights(found, str(file))


def _weights_file(found: spec.RuntimeModelSpec, folder: Path) -> Path | None:
    """Return the file that an eager model's weights come from, relative names from `folder`; None for random ones."""
    source = found.genenc.source if found.genenc else None
    file = None if source is None else folder / source.weights
    return file if file is not None and file.is_file() else None


def _with_weights(found: spec.RuntimeModelSpec, weights: str) -> spec.RuntimeModelSpec:
    """Return the spec of the same eager model with its weights named otherwise."""
    assert found.genenc is not None
    assert found.genenc.source is not None
    source = found.genenc.source.model_copy(update={"weights": weights})
    return found.model_copy(update={"genenc": found.genenc.model_copy(update={"source": source})})


def _copied(path: Path, run_folder: Path, name: str) -> str:
    """Copy a file into the run's model folder, whole or not at all; return its name relative to the run folder."""
    target = run_folder / MODEL_FOLDER / name
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        local.LocalObjects(run_folder).make_folder(MODEL_FOLDER)
        shutil.copyfile(path, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        files.sync_folder(target.parent)
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise errors.InputError(f"cannot copy the model's file {str(path)!r} into the run folder: {error}") from error
    return f"{MODEL_FOLDER}/{name}"

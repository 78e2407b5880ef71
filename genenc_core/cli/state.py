"""The `status`, `verify` and `info` commands, as text or JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from genenc_core import api, errors, spec
from genenc_core.cli import output
from genenc_core.run import precision, probe_source
from genenc_core.run import status as run_status
from genenc_core.run.decisions import KEY
from genenc_core.run.folder import DATASET, MODEL_SPEC, PROBED, RunFolder, dataset_of
from genenc_core.run.integrity import README
from genenc_core.store.backends.objects import Root, is_remote, join, open_objects
from genenc_core.store.repair import Repaired, is_original
from genenc_core.store.run_store import RunStore
from genenc_core.store.verify import Problem, VerifyReport
from genenc_core.text import argument, plural

LISTED = 20


def status(root: Root, *, as_json: bool) -> int:
    """Print a run's status; return the exit code for its state."""
    if _is_dataset(root):
        return _dataset_status(root, as_json=as_json)
    found = run_status.survey(RunFolder(root), most=None if as_json else run_status.NAMED, committed_rows=as_json)
    if as_json:
        shards = [dataclasses.asdict(row) for row in found.shards]
        described = run_status.describe(found.status)
        left_out = {kind: {"files": count, "first": first} for kind, (count, first) in found.left_out.items()}
        images = {"unreadable_images": found.unreadable, "failed_images": found.failed_images, "left_out": left_out}
        source = {"source": found.source} if found.is_probe_set else {}
        output.say_json({**described, "shard_rows": shards, **images, **source})
        return found.status.exit_code
    output.say(run_status.summary_lines(found, found.status.bound))
    if found.status.complete:
        output.say([f"counted from the commit records; genenc verify {argument(root)} reads what is stored"])
    failed = [row for row in found.shards if row.state == "failed"]
    output.say([f"shard {row.shard} (rows {row.start}-{row.stop - 1}) failed: {row.reason}" for row in failed[:LISTED]])
    if found.failed_images:
        output.say(["images that could not be read when shards failed:"])
        output.say([f"  row {item['row']}: {item['image_id']}: {item['reason']}" for item in found.failed_images])
    return found.status.exit_code


def verify(root: Root, *, content: bool, repair: bool = False, as_json: bool) -> int:
    """Check a run and optionally repair it; print the problems; return 0 if it is intact afterwards."""
    if _is_dataset(root):
        return _verify_dataset(root, content=content, repair=repair, as_json=as_json)
    report = api.verify(root, content=content)
    if not as_json:
        _print_report(root, report)
    done = api.Run.open(root).repair(content=content) if repair and not report.ok else None
    source = _changes_of_source(root)
    if as_json:
        repaired = None if done is None else {**dataclasses.asdict(done), "folder": join(root, done.folder)}
        more = {} if source is None else {"source": source}
        output.say_json({"ok": report.ok, **dataclasses.asdict(report), "repaired": repaired, **more})
    elif done is not None:
        _print_repair(root, done)
    elif not report.ok:
        output.say(_advice(root, report))
    if not as_json:
        output.say(source or [])
    return 0 if report.ok or (done is not None and not done.unrepaired) else 1


def _changes_of_source(root: Root) -> list[str] | None:
    """Return what has become of the source of a probe set; None if it is none, or is too damaged to say."""
    try:
        run = RunFolder(root)
        if not run.is_probe_set:
            return None
        changes = [f"source: {problem} since it was probed" for problem in probe_source.changes(run)]
        return [*probe_source.notes(run), *changes]
    except (errors.StoreError, errors.InputError):
        return None


def _is_dataset(root: Root) -> bool:
    """Return whether there is a dataset; what cannot be read is reported as a run that cannot."""
    try:
        objects = open_objects(root)
        return objects.size(DATASET) is not None
    except (OSError, errors.GenencError):
        return False


def _dataset_status(root: Root, *, as_json: bool) -> int:
    # Imported late: it imports torch.
    from genenc_core.dataset import summary as dataset_summary
    from genenc_core.dataset.folder import DatasetFolder

    folder = DatasetFolder(root)
    version = folder.version()
    if as_json:
        described = {"dataset": folder.root, "version": version.version, "counts": version.counts}
        output.say_json({**described, "parts": [part.name for part in version.parts], "made": version.made})
    else:
        output.say(dataset_summary.state(folder))
    return 3 if version.counts["unreadable"] else 0


def _verify_dataset(root: Root, *, content: bool, repair: bool, as_json: bool) -> int:
    if repair:
        raise errors.InputError(
            f"{str(root)!r} is a dataset, whose parts must not change: genenc verify {argument(root)} names what is "
            "damaged; restore it from a copy"
        )
    # Imported late: it imports torch.
    from genenc_core.dataset import verify as dataset_verify
    from genenc_core.dataset.folder import DatasetFolder

    found = dataset_verify.verify(DatasetFolder(root), content=content)
    if as_json:
        output.say_json(dataset_verify.describe(found))
    else:
        output.say([str(problem) for problem in found.problems])
        state = "intact" if found.ok else f"{plural(len(found.problems), 'problem')}"
        output.say([f"{root}: {state}; {plural(found.versions, 'version')}, {plural(found.parts, 'part')} checked"])
    return 0 if found.ok else 1


def _advice(root: Root, report: VerifyReport) -> list[str]:
    """Return remedies for the kinds of damage found."""
    if (dataset := dataset_of(root)) is not None:
        return [f"a part of the dataset {dataset!r}, whose versions must not change: restore it from a copy"]
    store, where = RunStore.open(root), argument(root)
    originals = [problem.key for problem in report.problems if is_original(store, problem)]
    lost = [key for key in dict.fromkeys(originals) if key != README]
    lines = []
    if len(report.problems) > len([key for key in originals if key != README]):
        again = any(problem.shard is not None for problem in report.problems)
        then = f", then genenc resume {where}" if again else ""
        lines.append(f"to restore {'damaged shards' if again else 'what can be'}: genenc verify {where} --repair{then}")
    if lost:
        lines.append(f"to be restored from a copy, --repair cannot recreate them: {', '.join(lost)}")
    return lines


def _print_report(root: Root, report: VerifyReport) -> None:
    output.say([_problem_line(problem) for problem in report.problems])
    pending = f", {plural(len(report.pending), 'shard')} not written yet" if report.pending else ""
    words = "intact" if report.ok else plural(len(report.problems), "problem")
    output.say([f"{root}: {plural(report.shards_checked, 'shard')} checked{pending}: {words}"])


def _print_repair(root: Root, done: Repaired) -> None:
    if done.restored:
        output.say([f"restored: {', '.join(done.restored)}"])
    if done.lost:
        output.say([f"lost and replaced by a placeholder: {', '.join(done.lost)}; restore them from a copy of the run"])
    if done.set_aside:
        output.say([f"set aside in {join(root, done.folder)}: {plural(len(done.set_aside), 'file')}"])
    if done.requeued:
        shards = ", ".join(map(str, done.requeued))
        output.say([f"to be encoded again: shards {shards}: genenc resume {argument(root)}"])
    output.say([f"not repaired: {_problem_line(problem)}" for problem in done.unrepaired])


def _problem_line(problem: Problem) -> str:
    rows = "" if problem.rows is None else f" rows {problem.rows[0]}-{problem.rows[1] - 1}"
    shard = "" if problem.shard is None else f"shard {problem.shard}"
    return f"{shard}{rows} {problem.key}: {problem.what}".strip()


def info(target: str, folders: tuple[str, ...], *, trust: bool = False, as_json: bool) -> None:
    """Describe a run folder or a model: a spec file, the id of a spec in `folders`, or a model name."""
    if is_remote(target) or Path(target).is_dir():
        _info_run(RunFolder(target), as_json=as_json)
        return
    if not folders and ("/" in target or target.endswith(".json")) and not Path(target).exists() and not _known(target):
        raise errors.InputError(f"{target!r} does not exist: give a run folder, a spec JSON or a model name")
    # Imported late: it imports torch, which takes seconds and is not needed for runs.
    from genenc_core.run import model_info

    found = model_info.find(target, folders, trust=trust)
    if as_json:
        output.say_json(model_info.as_json(found))
    else:
        output.say(model_info.summary(found))


def _known(name: str) -> bool:
    return name.partition("/")[0] in ("genenc", "torchvision", "timm")


def _info_run(folder: RunFolder, *, as_json: bool) -> None:
    identity: dict[str, Any] = dict(folder.identity)
    arrays: list[dict[str, Any]] = [
        {"name": plan.name, "dims": plan.dims, "shape": plan.shape, "dtype": plan.dtype, "chunk_rows": plan.chunk_rows}
        | ({"chunk_shape": plan.chunk_shape} if plan.chunk_tail else {})
        for plan in folder.store.plan.arrays
    ]
    if as_json:
        output.say_json({"identity": identity, "fingerprint": folder.store.plan.fingerprint, "arrays": arrays})
        return
    source = spec.RuntimeModelSpec.from_json(folder.objects.read(MODEL_SPEC).decode()).genenc
    weights = "of the artifact" if source is None or source.source is None else source.source.weights
    computed = precision.describe(folder)
    output.say(
        [
            f"model          {identity['model']} ({identity['backend']})",
            f"weights        {weights}, sha256 {identity['weights']}",
            f"preprocessing  {folder.preprocessing.describe()}",
            *([] if source is None or source.normalization is None else [f"normalization  {source.normalization}"]),
            *([] if computed is None else [f"precision      {computed}"]),
            *(
                []
                if KEY not in identity
                else [f"reproducible   tensors {identity[KEY]['tensors'][:16]}, pixels {identity[KEY]['pixels'][:16]}"]
            ),
            *([] if folder.tiles is None else [f"tiles          {folder.tiles.describe()}"]),
            *(
                f"cells          {name}: one every {at.stride[0]:g} x {at.stride[1]:g} pixels, the first centred at "
                f"{at.first[0]:g}, {at.first[1]:g}"
                for name, at in folder.cells.items()
            ),
            *(
                f"probed         {slot} of {probe_source.place(folder.objects)}, stored there as {product}"
                for slot, product in identity.get(PROBED, {}).get("slots", {}).items()
            ),
            f"images         {identity['images']['rows']} rows, digest {identity['images']['digest'][:16]}",
            f"points         {', '.join(identity['images']['points']) or 'none'}",
            *([] if folder.regions is None else [f"regions        {len(folder.regions)}"]),
            f"shards         {folder.store.shard_count} of {folder.store.plan.shard_rows} rows",
            f"fingerprint    {folder.store.plan.fingerprint}",
            "arrays",
            *(
                f"  {item['name']:<18} {item['dtype']:<8} {list(item['shape'])} {', '.join(item['dims'])}"
                + (f", in chunks of {list(item['chunk_shape'])}" if "chunk_shape" in item else "")
                for item in arrays
            ),
        ]
    )

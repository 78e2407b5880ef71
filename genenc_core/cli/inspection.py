"""`status`, `verify` and `info`: what a run folder or a spec says, for people or as JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from genenc_core import errors, spec
from genenc_core.cli import output
from genenc_core.run import precision
from genenc_core.run import status as run_status
from genenc_core.run.folder import MODEL_SPEC, RunFolder
from genenc_core.run.integrity import README
from genenc_core.store.objects import Root, is_remote, join
from genenc_core.store.repair import Repaired, is_original
from genenc_core.store.run_store import RunStore
from genenc_core.store.verify import Problem, VerifyReport
from genenc_core.text import argument, plural

LISTED = 20


def status(root: Root, *, as_json: bool) -> int:
    """Print where a run stands; return the exit code of its state."""
    found = run_status.survey(root, most=None if as_json else run_status.NAMED, committed_rows=as_json)
    if as_json:
        shards = [dataclasses.asdict(row) for row in found.shards]
        described = run_status.describe(found.status)
        left_out = {kind: {"files": count, "first": first} for kind, (count, first) in found.left_out.items()}
        images = {"unreadable_images": found.unreadable, "left_out": left_out}
        output.say_json({**described, "shard_rows": shards, **images})
        return found.status.exit_code
    output.say(run_status.summary_lines(found))
    if found.status.complete:
        output.say([f"counted from the commit records; genenc verify {argument(root)} reads what is stored"])
    failed = [row for row in found.shards if row.state == "failed"]
    output.say([f"shard {row.shard} (rows {row.start}-{row.stop - 1}) failed: {row.reason}" for row in failed[:LISTED]])
    return found.status.exit_code


def verify(root: Root, *, content: bool, repair: bool = False, as_json: bool) -> int:
    """Check a run, put it right if asked to; print what is (or was) wrong; return 0 when nothing is wrong now."""
    report = run_status.verify_run(root, content=content)
    if not as_json:
        _tell_report(root, report)
    done = run_status.repair_run(root, content=content) if repair and not report.ok else None
    if as_json:
        repaired = None if done is None else {**dataclasses.asdict(done), "folder": join(root, done.folder)}
        output.say_json({"ok": report.ok, **dataclasses.asdict(report), "repaired": repaired})
    elif done is not None:
        _tell_repair(root, done)
    elif not report.ok:
        output.say(_advice(root, report))
    return 0 if report.ok or (done is not None and not done.unrepaired) else 1


def _advice(root: Root, report: VerifyReport) -> list[str]:
    """Return how to go on, for each kind of damage that there is."""
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


def _tell_report(root: Root, report: VerifyReport) -> None:
    output.say([_problem_line(problem) for problem in report.problems])
    pending = f", {plural(len(report.pending), 'shard')} not written yet" if report.pending else ""
    words = "intact" if report.ok else plural(len(report.problems), "problem")
    output.say([f"{root}: {plural(report.shards_checked, 'shard')} checked{pending}: {words}"])


def _tell_repair(root: Root, done: Repaired) -> None:
    if done.restored:
        output.say([f"restored: {', '.join(done.restored)}"])
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
    """Print what a run holds, or what a model is: a spec file, the id of one in `folders`, or a name."""
    if is_remote(target) or Path(target).is_dir():
        _info_run(RunFolder(target), as_json=as_json)
        return
    if not folders and ("/" in target or target.endswith(".json")) and not Path(target).exists() and not _known(target):
        raise errors.InputError(f"{target!r} does not exist: name a run folder, a spec JSON or a model")
    # Imports torch, which takes seconds; what a run holds is told without.
    from genenc_core.run import model_info

    found = model_info.find(target, folders, trust=trust)
    if as_json:
        output.say_json(model_info.as_json(found))
    else:
        output.say(model_info.words(found))


def _known(name: str) -> bool:
    return name.partition("/")[0] in ("genenc", "torchvision", "timm")


def _info_run(folder: RunFolder, *, as_json: bool) -> None:
    identity: dict[str, Any] = dict(folder.identity)
    arrays: list[dict[str, Any]] = [
        {"name": plan.name, "dims": plan.dims, "shape": plan.shape, "dtype": plan.dtype, "chunk_rows": plan.chunk_rows}
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
            *([] if computed is None else [f"precision      {computed}"]),
            *([] if folder.tiles is None else [f"tiles          {folder.tiles.describe()}"]),
            f"images         {identity['images']['rows']} rows, digest {identity['images']['digest'][:16]}",
            f"points         {', '.join(identity['images']['points']) or 'none'}",
            f"shards         {folder.store.shard_count} of {folder.store.plan.shard_rows} rows",
            f"fingerprint    {folder.store.plan.fingerprint}",
            "arrays",
            *(
                f"  {item['name']:<18} {item['dtype']:<8} {list(item['shape'])} {', '.join(item['dims'])}"
                for item in arrays
            ),
        ]
    )

"""Commands on datasets: `update`, `versions`, `diff`, `tag`, `compact`, `prune`."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genenc_core import choices, text
from genenc_core.cli import output, usage
from genenc_core.cli.usage import Json

if TYPE_CHECKING:
    from genenc_core.cli.runners import Runner
    from genenc_core.dataset.compact import Outcome
    from genenc_core.dataset.update import Updated

DatasetArgument = Annotated[str, typer.Argument(help="A dataset, or s3://bucket/prefix.", metavar="DATASET")]
GUIDE = "genenc_core/dataset/README.md"


def add_to(app: typer.Typer, choose_runner: "Callable[[bool], Runner]") -> None:
    """Register the commands."""

    @usage.lazy_command(
        app,
        "update",
        short_help="Create or update a dataset: encode what is new or changed.",
        example="genenc update dataset photos/ --model resnet18",
        guide=GUIDE,
        context_settings={"allow_extra_args": True},
    )
    def make_update() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.dataset.parameters import UpdateParameters

        fields = UpdateParameters.model_fields

        @options.generated(fields, arguments=("out", "images"), names={"out": "DATASET"})
        def update(
            context: typer.Context,
            values: dict[str, Any],
            config: usage.Config = None,
            json: usage.JsonOrConfig = None,
            plain: usage.PlainOrConfig = None,
        ) -> None:
            """Create or update a dataset: list the images, encode the new and changed ones, make a version.

            Options that are not given are as in the last update. Exit codes: 0 all new rows stored, or nothing new;
            3 some new images unreadable (listed), 1 failed, 2 wrong usage, 130 stopped.
            """
            with output.report_errors(as_json=bool(json)):
                as_json = usage.wants_json(config) if json is None else json
            with output.report_errors(as_json=as_json):
                usage.refuse_more_images(values["images"], context.args)
                more = {"plain": plain, "json": json}
                given = usage.merge_config(config, values | more, fields, required=("out",))
                runner, as_json = choose_runner(given.pop("plain")), given.pop("json")
            with output.report_errors(as_json=as_json), runner.session():
                raise typer.Exit(_update(given, runner, as_json=as_json))

        return update

    @usage.command(app, short_help="List a dataset's versions.", example="genenc versions dataset", guide=GUIDE)
    def versions(dataset: DatasetArgument, json: Json = False) -> None:
        """List a dataset's versions, the newest last: rows, what changed, when, and their tags."""
        with output.report_errors(as_json=json):
            from genenc_core.dataset import summary
            from genenc_core.dataset.folder import DatasetFolder

            found = summary.history(DatasetFolder(dataset))
            if json:
                output.say_json([dataclasses.asdict(line) for line in found])
            else:
                headings = ("version", "images", "unreadable", "changes", "made", "by", "tags")
                output.say_table(headings, [line.columns() for line in found])

    @usage.command(app, short_help="Compare two versions.", example="genenc diff dataset 1 2", guide=GUIDE)
    def diff(
        dataset: DatasetArgument,
        one: Annotated[str, typer.Argument(help="A version: its number or a tag.")],
        other: Annotated[str, typer.Argument(help="The version to compare with it.")],
        json: Json = False,
    ) -> None:
        """Show which images a version has that an earlier one had not, lacks, encoded again or has renamed."""
        with output.report_errors(as_json=json):
            from genenc_core.dataset import diff
            from genenc_core.dataset.folder import DatasetFolder

            found = diff.diff(DatasetFolder(dataset), one, other)
            if json:
                output.say_json(dataclasses.asdict(found))
            else:
                output.say(found.lines())

    @usage.command(app, short_help="Name a version.", example="genenc tag dataset paper --version 3", guide=GUIDE)
    def tag(
        dataset: DatasetArgument,
        name: Annotated[str, typer.Argument(help="The tag: a letter, then letters, digits, '.', '_', '-'.")],
        version: Annotated[
            str | None,
            usage.option(
                "--version", help="The version to name: a number or a tag.", group=choices.STORE, default="the newest"
            ),
        ] = None,
        delete: Annotated[bool, usage.option("--delete", help="Remove the tag.", group=choices.STORE)] = False,
        json: Json = False,
    ) -> None:
        """Name a version, so that it can be opened by that name and is never pruned; or move or remove the name."""
        with output.report_errors(as_json=json):
            from genenc_core.dataset import tags
            from genenc_core.dataset.folder import DatasetFolder

            folder = DatasetFolder(dataset)
            done = tags.remove_tag(folder, name) if delete else tags.set_tag(folder, name, version)
            before = "" if done.before is None else f" (it was version {done.before})"
            if json:
                output.say_json(dataclasses.asdict(done))
            else:
                output.say([f"{name}: {'removed' if delete else f'version {done.version}'}{before}"])

    @usage.command(app, short_help="Join a dataset's small parts.", example="genenc compact dataset", guide=GUIDE)
    def compact(
        dataset: DatasetArgument,
        below: Annotated[
            int | None,
            usage.option(
                "--below", help="Parts with fewer images than this are joined.", group=choices.STORE, default="65536"
            ),
        ] = None,
        json: Json = False,
    ) -> None:
        """Copy neighbouring small parts into one and make a version of it: the same rows, nothing is encoded.

        The earlier parts stay for the earlier versions; `genenc prune` removes them.
        """
        with output.report_errors(as_json=json):
            from genenc_core.cli import extraction
            from genenc_core.dataset import compact
            from genenc_core.dataset.folder import DatasetFolder

            folder = DatasetFolder(dataset)
            code = extraction.watch(
                lambda: compact.compact(folder, below=compact.SMALL_ROWS if below is None else below),
                lambda done: _report_compaction(done, as_json=json),
                state=lambda: "what was copied is kept; the same command continues",
                as_json=json,
            )
            raise typer.Exit(code)

    @usage.command(
        app,
        short_help="Remove what no kept version needs.",
        example="genenc prune dataset --keep 30 --dry-run",
        guide=GUIDE,
    )
    def prune(
        dataset: DatasetArgument,
        keep: Annotated[
            int, usage.option("--keep", help="Newest versions to keep, beside those with a tag.", group=choices.STORE)
        ],
        dry_run: Annotated[
            bool, usage.option("--dry-run", help="Only say what would be removed.", group=choices.STORE)
        ] = False,
        json: Json = False,
    ) -> None:
        """Remove parts and files that no kept version needs; pruned versions cannot be opened any more."""
        with output.report_errors(as_json=json):
            from genenc_core.dataset import prune
            from genenc_core.dataset.folder import DatasetFolder

            done = prune.prune(DatasetFolder(dataset), keep=keep, dry_run=dry_run)
            if json:
                output.say_json(prune.describe(done))
            else:
                output.say(prune.lines(done))


def _report_compaction(done: "Outcome", *, as_json: bool) -> int:
    if as_json:
        made = [dataclasses.asdict(made) for made in done.made]
        output.say_json({"dataset": done.folder.root, "version": done.version.version, "made": made})
    else:
        joined = [f"{made.part}: {made.rows} images of {len(made.sources)} parts" for made in done.made]
        output.say([*joined, f"version {done.version.version}, {text.plural(len(done.version.parts), 'part')}"])
        if not done.made:
            output.say(["nothing to join"])
    return 0


def _update(values: dict[str, Any], runner: "Runner", *, as_json: bool) -> int:
    """Update a dataset; return the exit code."""
    from genenc_core.cli import extraction
    from genenc_core.dataset import parts
    from genenc_core.dataset.parameters import UpdateParameters
    from genenc_core.images.load import decode_server
    from genenc_core.store.backends.objects import to_root

    decode_server.prepare()
    given = UpdateParameters.model_validate(values)
    parts.refuse_other_folder(to_root(given.out))
    return extraction.watch(
        lambda: runner.update(given),
        lambda outcome: _report(outcome, as_json=as_json),
        state=lambda: "complete shards are kept; the same command continues",
        as_json=as_json,
    )


def _report(outcome: "Updated", *, as_json: bool) -> int:
    from genenc_core.dataset import summary
    from genenc_core.run import status

    for failure in outcome.failures:
        output.tell(f"failed: {failure}")
    if as_json:
        output.say_json(summary.describe(outcome))
    else:
        for result in outcome.results:
            found = status.survey(result.run, most=status.NAMED, committed_rows=False)
            output.say(status.summary_lines(found, result.bound))
        output.say(summary.lines(outcome))
    return outcome.exit_code

"""Commands of operations: `serve`, `deploy`, `doctor`."""

import dataclasses
from typing import Annotated

import typer

from genenc_core import choices, errors
from genenc_core.cli import output, usage
from genenc_core.cli.runners import Flows
from genenc_core.cli.usage import Json

GUIDE = "deployments/README.md"
Pool = Annotated[
    str | None,
    usage.option(
        "--pool", help="The work pool that runs the deployments.", group=choices.SERVER, default="theirs, else genenc"
    ),
]


def add_to(app: typer.Typer, flows: Flows | None) -> None:
    """Register the commands."""

    @usage.command(
        app,
        short_help="Run Prefect on this machine: server, UI, deployments, worker.",
        example="genenc serve --port 4200",
        guide=GUIDE,
    )
    def serve(
        port: Annotated[
            int, usage.option(help="The server's port on 127.0.0.1.", group=choices.SERVER, min=1, max=65535)
        ] = 4200,
        pool: Pool = None,
        limit: Annotated[
            int,
            usage.option(help="Runs at a time; one process uses one device.", group=choices.SERVER, min=1),
        ] = 1,
    ) -> None:
        """Run a Prefect server with the shipped deployments and a worker, until Ctrl-C.

        If PREFECT_API_URL names a server, that one is used. Exit code 0 after Ctrl-C or SIGTERM.
        """
        with output.report_errors():
            try:
                _needed(flows).serve(port=port, pool=pool, limit=limit)
            except KeyboardInterrupt:
                output.tell("ended")

    @usage.command(
        app,
        short_help="Register the shipped deployments with a Prefect server.",
        example="genenc deploy --notify slack-webhook/lab",
        guide=GUIDE,
    )
    def deploy(
        pool: Pool = None,
        notify: Annotated[
            str | None,
            usage.option(
                help="A notification block of the server, for runs that fail.",
                group=choices.SERVER,
                metavar="TYPE/NAME",
                default="",
            ),
        ] = None,
        json: Json = False,
    ) -> None:
        """Register the deployments with the server of PREFECT_API_URL, with their pool and automations.

        Again, it updates them; parameters and schedules that were changed on the server stay.
        """
        with output.report_errors(as_json=json):
            lines = _needed(flows).deploy(pool=pool, notify=notify)
            if json:
                output.say_json({"registered": lines})
            else:
                output.say(lines)

    @usage.command(
        app,
        short_help="Check this machine and the Prefect server.",
        example="genenc doctor s3://bucket/run",
        guide=GUIDE,
    )
    def doctor(
        place: Annotated[
            str | None, typer.Argument(help="Where runs will be stored: a folder, or s3://bucket/prefix.")
        ] = None,
        pool: Pool = None,
        json: Json = False,
    ) -> None:
        """Check what runs need, and say how to mend it; exit code 1 if something is missing."""
        with output.report_errors(as_json=json):
            from genenc_core.cli import checks

            found = [*checks.machine(place), *(flows.check(pool) if flows else ())]
            failed = any(check.state == checks.FAILED for check in found)
            if json:
                output.say_json({"ok": not failed, "checks": [dataclasses.asdict(check) for check in found]})
            else:
                output.say([line for check in found for line in check.lines()])
            raise typer.Exit(1 if failed else 0)


def _needed(flows: Flows | None) -> Flows:
    if flows is None:
        raise errors.InputError("this command needs Prefect: run it as genenc")
    return flows

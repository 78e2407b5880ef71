"""The exceptions that users meet; each message names the value, the reason and the remedy."""

from collections.abc import Sequence

from genenc_core import text


class GenencError(Exception):
    """Anything genenc refuses or fails at; the command line prints it as one paragraph and exits 1.

    Credentials of addresses in the message are hidden: it goes to logs, records and screens.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(text.redacted(text.encodable(message)))


class InputError(GenencError):
    """What the user gave cannot be used as it is: a path, a name, a file's content; exit code 2."""

    exit_code = 2


class SpecError(InputError):
    """A RuntimeModelSpec that cannot be parsed or breaks its rules; `problems` lists every one, the text the first."""

    shown = 30

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = [f"and {len(self.problems) - self.shown} more"] if len(self.problems) > self.shown else []
        super().__init__(f"{subject}: " + "; ".join([*self.problems[: self.shown], *more]))


class ExportError(GenencError):
    """A model that cannot be exported, or an artifact that differs from its model."""


class EncoderError(GenencError):
    """An encoder called against its contract, or one that broke it (shape, dtype, device, batch)."""


class StoreError(GenencError):
    """A run folder that is missing, damaged, or belongs to another run."""


class OtherRunError(StoreError):
    """A run folder asked for as another run than it is; exit code 2."""

    exit_code = 2


class UnsafeFileError(OSError):
    """A name in a run folder that is a symbolic link, a named pipe, a socket or a device, or a file of absurd size.

    `strerror` says what it is, `filename` where; nothing of it was read or changed.
    """

    @property
    def sentence(self) -> str:
        """The fault as a message: what is where, and what to do."""
        return (
            f"{str(self.filename)!r} is {self.strerror}; genenc neither reads nor changes it: put the original file or "
            "folder itself there, or move it out of the run folder"
        )


class ShardError(GenencError):
    """A shard that was not committed: too many unreadable images, or its encoder or store failed."""

    def __init__(self, shard: int, reason: str) -> None:
        self.shard = shard
        self.reason = reason
        super().__init__(f"shard {shard:05d}: {reason}")

    def __reduce__(self) -> tuple[type["ShardError"], tuple[int, str]]:
        """Keep the two arguments across process boundaries."""
        return type(self), (self.shard, self.reason)


class Stopped(GenencError):
    """Work ended on request between two batches; only whole shards were stored."""

    exit_code = 130

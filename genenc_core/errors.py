"""Exceptions raised by genenc; each message names the value, the reason and the remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

from genenc_core import text

_LONGEST = 300


class GenencError(Exception):
    """Base class of genenc's errors; the command line prints the message as one paragraph and exits with 1.

    Credentials in URLs are redacted, since messages end up in logs, records and terminals.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(text.redacted(text.encodable(message)))


class InputError(GenencError):
    """Invalid user input: a path, a name or a file's content; exit code 2."""

    exit_code = 2


class SpecError(InputError):
    """An unparsable or invalid RuntimeModelSpec; `problems` holds all problems, the message the first `shown`."""

    shown = 30

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = [f"and {len(self.problems) - self.shown} more"] if len(self.problems) > self.shown else []
        super().__init__(f"{subject}: " + "; ".join([*self.problems[: self.shown], *more]))


class ExportError(GenencError):
    """A model that cannot be exported, or an artifact that differs from its model."""


class EncoderError(GenencError):
    """A violation of the encoder contract, by the caller or the encoder (shape, dtype, device, batch)."""


class StoreError(GenencError):
    """A run folder that is missing, damaged or belongs to another run."""


class OtherRunError(StoreError):
    """A run folder whose run differs from the requested one; exit code 2."""

    exit_code = 2


class UnsafeFileError(OSError):
    """A symbolic link, named pipe, socket, device or oversized file in a run folder.

    `strerror` says what it is, `filename` where; it was neither read nor changed.
    """

    @property
    def sentence(self) -> str:
        """The error as a message, with the remedy."""
        return (
            f"{str(self.filename)!r} is {self.strerror}; genenc neither reads nor changes it: put the original file or "
            "folder itself there, or move it out of the run folder"
        )


class ShardError(GenencError):
    """A shard that was not committed: too many unreadable images, or a failure of the encoder or store.

    `images` are those that could not be read until it failed: `row`, `image_id` and `reason` of each.
    """

    def __init__(self, shard: int, reason: str, images: Sequence[Mapping[str, Any]] = ()) -> None:
        self.shard = shard
        self.reason = reason
        self.images = tuple(images)
        super().__init__(f"shard {shard:05d}: {reason}")

    def __reduce__(self) -> tuple[type["ShardError"], tuple[int, str, tuple[Mapping[str, Any], ...]]]:
        """Pickle with all constructor arguments."""
        return type(self), (self.shard, self.reason, self.images)


class Stopped(GenencError):
    """Work cancelled between two batches; only whole shards were stored."""

    exit_code = 130


def reason(error: BaseException) -> str:
    """Return an error's message on one line, shortened and without a full stop; its type's name if it has none."""
    text = str(error)
    if "TorchScript interpreter" in text and (last := text.strip().rpartition("\n")[2].strip()):
        # The TorchScript traceback precedes the actual error, which is on the last line.
        text = last.partition(": ")[2] or last
    text = " ".join(text.split())
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return short.rstrip(". ") or type(error).__name__

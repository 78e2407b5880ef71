"""Finds the images that an encoder cannot take, so that they cost their own rows and no others."""

import dataclasses
from collections.abc import Iterator

from genenc_core import errors
from genenc_core.encoding import engine
from genenc_core.encoding.reduced import Reduced


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Images `start` to `stop` of a batch: what was made of them, or why nothing was of this one image."""

    start: int
    stop: int
    reduced: Reduced | None = None
    failure: str | None = None


def encode_pieces(
    runner: engine.Engine, batch: engine.Batch, whole: engine.Ticket, *, may_fail: int
) -> Iterator[Piece]:
    """Wait for a batch, submitted as `whole`; if the encoder raises, halve it until what it raises for stands alone.

    Yields:
        The pieces in order; together they are the whole batch.

    Raises:
        InputError: a value that does not fit its stored type: no image's fault.
        EncoderError: the encoder broke its contract (outputs of another number, shape or type), at once: all images
            have the same size, so no image makes it do so.
        Stopped: the end was asked for.
        OSError: at once: it is not an image's fault either.
        Exception: whatever the encoder raised, once more than `may_fail` images failed alone: then it is the encoder.
    """
    waiting = [(0, len(batch))]
    failed = 0
    while waiting:
        start, stop = waiting.pop()
        try:
            reduced = (whole if stop - start == len(batch) else runner.submit(batch.part(start, stop))).result()
        except (errors.InputError, errors.EncoderError, errors.Stopped, OSError):
            raise
        except Exception as error:  # a model may raise anything
            if failed >= may_fail:
                raise
            if stop - start == 1:
                failed += 1
                yield Piece(start=start, stop=stop, failure=_words(error))
                continue
        else:
            yield Piece(start=start, stop=stop, reduced=reduced)
            continue
        # Outside the handler, where the exception no longer keeps the failed batch in memory.
        middle = (start + stop) // 2
        waiting += [(middle, stop), (start, middle)]


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    told = text if isinstance(error, errors.GenencError) else f"{type(error).__name__}: {text}"
    return f"the encoder failed for this image: {told}"[:300]

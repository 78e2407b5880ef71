"""Other people's error texts, made fit for one sentence of ours."""

_LONGEST = 300


def reason(error: BaseException) -> str:
    """Return the error's text on one line, shortened, without a full stop; its kind when it says nothing."""
    text = str(error)
    if "TorchScript interpreter" in text and (last := text.strip().rpartition("\n")[2].strip()):
        # The traceback of the script comes first, and what went wrong last.
        text = last.partition(": ")[2] or last
    text = " ".join(text.split())
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return short.rstrip(". ") or type(error).__name__

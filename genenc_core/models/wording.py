"""Other people's error texts, made fit for one sentence of ours."""

_LONGEST = 300


def reason(error: BaseException) -> str:
    """Return the error's text on one line, shortened, without a full stop; its kind when it says nothing."""
    text = " ".join(str(error).split())
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return short.rstrip(". ") or type(error).__name__

"""Access to buckets of S3, or of a server that speaks it; the `AWS_*` environment names server and credentials."""

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from obstore import exceptions
from obstore.store import S3Store

from genenc_core import errors

RETRY: Final = {
    "max_retries": 7,
    "retry_timeout": timedelta(seconds=60),
    # Half a minute in all; obstore's own values give up after two seconds.
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8), "base": 4},
}
CLIENT: Final = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=5)}
BULK: Final = {"timeout": timedelta(minutes=15), "connect_timeout": timedelta(seconds=5)}
"""Of requests that move an object's bytes, which may be many."""
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_HINTS: Final = {
    "InvalidAccessKeyId": "the server does not know this AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not the one of this AWS_ACCESS_KEY_ID",
    "AccessDenied": "the key needs the rights to list the bucket, and to get, put and delete objects",
    "NoSuchBucket": "there is no such bucket",
    "ExpiredToken": "AWS_SESSION_TOKEN has expired",
    "InvalidToken": "AWS_SESSION_TOKEN is not valid",
    "AuthorizationHeaderMalformed": "AWS_REGION is not the bucket's region",
    "PermanentRedirect": "AWS_REGION is not the bucket's region",
    "IllegalLocationConstraintException": "AWS_REGION is not the bucket's region",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "169.254.169.254": "no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set; files in ~/.aws are not read",
    "Generic HTTP client error": "no answer from the server: check the endpoint and the network",
    "error sending request": "no answer from the server: check the endpoint and the network",
}
"""What an error code, or a part of a message, means for the user."""
_PROCESSES: Final[set[int]] = set()
"""This process, once it used S3, and those that it was forked from."""


def open_store(
    bucket: str, prefix: str, *, client: Mapping[str, Any] = CLIENT, retry: Mapping[str, Any] = RETRY
) -> S3Store:
    """Return the objects below a prefix of a bucket; nothing is asked yet.

    Raises:
        InputError: the bucket or the endpoint is no name or address, or the process was forked.
    """
    endpoint = next(filter(None, (os.environ.get(name, "") for name in _ENDPOINTS)), "")
    # obstore panics at these.
    if endpoint and not re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?/?", endpoint, re.ASCII):
        raise errors.InputError(
            "the endpoint in AWS_ENDPOINT_URL is not an address: give http://HOST:PORT or https://HOST:PORT, with the "
            "credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not re.fullmatch(r"[\w.-]{3,255}", bucket, re.ASCII):
        raise errors.InputError(f"{bucket!r} is not a bucket's name: it has 3 to 63 letters, digits, dots or dashes")
    if _PROCESSES and os.getpid() not in _PROCESSES:
        raise errors.InputError(
            "this process was forked from one that had used S3, and its connections do not live on: start processes "
            "with multiprocessing's 'spawn' or 'forkserver'"
        )
    _PROCESSES.add(os.getpid())
    options: Any = {**client, "allow_http": endpoint.startswith("http://")}
    patience: Any = retry
    try:
        return S3Store(bucket, prefix=prefix, client_options=options, retry_config=patience)
    except (exceptions.BaseError, ValueError) as error:
        raise errors.InputError(f"'s3://{bucket}/{prefix}' cannot be opened: {describe_error(error)}") from error


def describe_error(error: Exception) -> str:
    """Return what the server or the client said, in one line, without the client's dump of itself."""
    text = str(error).partition("Debug source:")[0]
    hint = next((meaning for sign, meaning in _HINTS.items() if sign in text), "")
    code = re.search(r"<Code>(\w+)</Code>", text)
    text = " ".join(text.partition("<?xml")[0].split()).rstrip(": ")
    status = re.search(r"non-2xx status code: (\d+[\w ]*)", text)
    tries = re.search(r"after (\d+) retries", text)
    said = f"S3 answered {status[1].strip()}" if status else text if len(text) < 300 else text[:300] + "..."
    said = ": ".join([said, *([code[1]] if code else [])])
    if tries and status:
        said += f", also when asked {tries[1]} times more"
    return f"{hint} ({said})" if hint else said

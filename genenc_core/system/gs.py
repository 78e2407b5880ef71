"""Access to buckets of Google Cloud Storage, with the credentials of the `GOOGLE_*` environment or of the machine."""

import re
from typing import Any

from obstore import exceptions
from obstore.store import GCSStore

from genenc_core import errors
from genenc_core.system import s3


def open_store(bucket: str, prefix: str) -> GCSStore:
    """Return the objects below a prefix of a bucket; nothing is asked yet.

    Raises:
        InputError: the bucket is no name, or the credentials are not readable.
    """
    if not re.fullmatch(r"[\w.-]{3,222}", bucket, re.ASCII):
        raise errors.InputError(f"{bucket!r} is not a bucket's name: it has 3 to 63 letters, digits, dots or dashes")
    client: Any = {**s3.CLIENT, "allow_http": True}
    retry: Any = s3.RETRY
    try:
        return GCSStore(bucket, prefix=prefix, client_options=client, retry_config=retry)
    except (exceptions.BaseError, ValueError) as error:
        raise errors.InputError(
            f"'gs://{bucket}/{prefix}' cannot be opened: {s3.describe_error(error)}. GOOGLE_APPLICATION_CREDENTIALS or "
            "GOOGLE_SERVICE_ACCOUNT name a file with the credentials"
        ) from error

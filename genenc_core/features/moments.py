"""Linear CKA of two sets of vectors of the same rows (Kornblith et al. 2019, equation 3 and section 3), in blocks.

With centred columns X `[n, p]` and Y `[n, q]` it is |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms. Blocks are merged by
means and centred products (Chan et al. 1983), so that nothing large is subtracted from something large; where the
products of channels are larger than those of rows, the equal form of rows is taken: <XX', YY'> / (|XX'| |YY'|).
"""

import numpy as np


class CrossProducts:
    """Centred products of the channels of two sets of vectors, merged block by block, in float64."""

    def __init__(self, channels: int, others: int) -> None:
        self.count = 0
        self.means = np.zeros(channels), np.zeros(others)
        self.own = np.zeros((channels, channels))
        self.other = np.zeros((others, others))
        self.cross = np.zeros((others, channels))

    @staticmethod
    def bytes(channels: int, others: int) -> int:
        """Return the memory that the products take."""
        return 8 * (channels**2 + others**2 + channels * others)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows: `[n, channels]` and `[n, others]`."""
        if not len(x):
            return
        x, y = x.astype(np.float64), y.astype(np.float64)
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        x -= mean_x
        y -= mean_y
        total = self.count + len(x)
        to_x, to_y = mean_x - self.means[0], mean_y - self.means[1]
        weight = self.count * len(x) / total
        self.own += x.T @ x + weight * np.outer(to_x, to_x)
        self.other += y.T @ y + weight * np.outer(to_y, to_y)
        self.cross += y.T @ x + weight * np.outer(to_y, to_x)
        share = len(x) / total
        self.means = self.means[0] + share * to_x, self.means[1] + share * to_y
        self.count = total

    def cka(self) -> float | None:
        """Return the linear CKA; None where a set has no variance."""
        return _ratio(float((self.cross**2).sum()), float((self.own**2).sum()), float((self.other**2).sum()))


def cka_of_rows(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return the linear CKA by the products of rows: `[n, channels]` and `[n, others]` in memory."""
    x, y = (each.astype(np.float64) - each.mean(axis=0, dtype=np.float64) for each in (x, y))
    own, other = x @ x.T, y @ y.T
    return _ratio(float((own * other).sum()), float((own**2).sum()), float((other**2).sum()))


def _ratio(cross: float, own: float, other: float) -> float | None:
    if own <= 0 or other <= 0:
        return None
    return float(min(cross / (own**0.5 * other**0.5), 1.0))

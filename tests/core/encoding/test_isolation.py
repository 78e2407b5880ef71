"""Images that an encoder raises for are found alone, in few calls, and never more of them than may fail."""

import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batch_size, engine, products, shard_encoding


class Picky:
    """The mean colour; raises for any batch with an image whose first byte is in `refused`."""

    device = torch.device("cpu")
    input_size = (4, 4)

    def __init__(self, refused: set[int], error: Exception) -> None:
        self.refused, self.error = refused, error
        self.calls = 0

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.refused & {round(float(image[0, 0, 0]) * 255) for image in images}:
            raise self.error
        return {"features": images}


def pieces_of(
    count: int, refused: set[int], *, may_fail: int, error: Exception | None = None
) -> tuple[list[shard_encoding.Piece], Picky]:
    encoder = Picky(refused, error or ValueError("no\n such image"))
    wanted = products.build_products(
        [products.parse_product("v=global_avg_pool")], [spec.SlotSpec(name="features", shape=(3, 4, 4))], point_count=0
    )
    runner = engine.Engine(encoder, wanted, batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), count))
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()
    batch = engine.Batch(
        pixels=pixels, points=torch.zeros(count, 0, 2, dtype=torch.float64), valid=torch.ones(count, 0).bool()
    )
    return list(shard_encoding.encode_pieces(runner, batch, runner.submit(batch), may_fail=may_fail)), encoder


def test_a_batch_without_fault_is_one_call() -> None:
    pieces, encoder = pieces_of(16, set(), may_fail=3)
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 16)]
    assert encoder.calls == 1


@pytest.mark.parametrize("refused", [{0}, {15}, {7}, {3, 4}, {0, 5, 15}, set(range(16))])
def test_the_refused_images_fail_alone_and_the_others_are_whole(refused: set[int]) -> None:
    pieces, encoder = pieces_of(16, refused, may_fail=16)
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, 16)
    failed = {piece.start for piece in pieces if piece.failure}
    assert failed == refused
    assert all(piece.stop - piece.start == 1 for piece in pieces if piece.failure)
    for piece in pieces:
        if piece.reduced is not None:
            found = (piece.reduced.arrays["v"][:, 0] * 255).round().tolist()
            assert found == list(range(piece.start, piece.stop))
    assert encoder.calls <= 1 + 2 * 4 * len(refused)
    assert pieces[-1].failure is None or "ValueError: no such image" in pieces[-1].failure


def test_more_failures_than_allowed_are_the_encoders_own() -> None:
    with pytest.raises(ValueError, match="no\n such image"):
        pieces_of(16, {2, 9}, may_fail=1)
    with pytest.raises(ValueError, match="no\n such image"):
        pieces_of(16, {2}, may_fail=0)


@pytest.mark.parametrize(
    "error", [errors.InputError("too large for float16"), errors.Stopped("now"), OSError(5, "EIO")]
)
def test_what_is_no_images_fault_is_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        pieces_of(16, {2}, may_fail=16, error=error)


def test_a_want_of_memory_is_no_images_fault() -> None:
    with pytest.raises(errors.EncoderError, match="out of memory at batch size 1"):
        pieces_of(16, {2}, may_fail=16, error=MemoryError())
    with pytest.raises(RuntimeError, match="create a primitive"):
        pieces_of(16, {2}, may_fail=16, error=RuntimeError("could not create a primitive"))

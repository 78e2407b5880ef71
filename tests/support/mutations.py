"""Mutations of bytes, JSON-like values and command lines, from a seeded generator."""

import json
import random
from typing import Any

TOKENS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"'", b",", b",,,,", b";", b"\t", b"{", b"}", b"[", b"]",
    b"nan", b"NaN", b"inf", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 30, b"9" * 5000, b"1_0", b"0x10", b"null", b"true",
    b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[31m", b"&a", b"*a", b"<<: *a", b"!!python/object/apply:os.system", b"---", b"%s",
    b"../../etc/passwd", b"=cmd|' /C calc'!A0", b"\xc3", b"A" * 3000, b"[" * 2000, b"{\"a\":" * 2000, b"- " * 500, b"#", b"\\u0000",
    b"\\ud800", b"2001-99-99", b"12:30:99", b"image,point,x,y\n", b"scorer,a,b\n", b"PAR1",
)  # fmt: skip

WORDS = (
    "", " ", "\x00", "a\x00b", "a" * 100_000, "../../../etc/passwd", "/dev/zero", "/dev/stdin", "é\u202e\u2066x", "\x1b[2J", "\ud800",
    "<script>", "[link](javascript:x)", "{0.__class__}", "%n%s", "$(touch x)", "os:abort", "os.path:join", ":", "a:", ":b", "a:b:c",
    "..:x", "genenc/", "timm/", "torchvision/", "factory/x", "random:", "random:-1", "random:99999999999999999999", "pretrained:",
    "https://user:secret@host/x?X-Amz-Signature=abc", "s3://k:v@b/p", "NaN", "inf", "-1", "0", "1e400", "9" * 400, "1,,2", "-", "--",
    "AOTInductor", "executorch", "onnx", "auto", "eager", ".pt", ".json", "x.yaml", "features", "image", "\N{PILE OF POO}" * 50,
)  # fmt: skip


class Raw(str):
    """Text to insert verbatim into JSON output, valid or not."""


NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**9, 10**30, Raw("9" * 5000), 1.5, -0.0, 1e308, Raw("1e999"), Raw("NaN"), Raw("-Infinity"),
    Raw("1E+2"), Raw("01"), True, False, None,
)  # fmt: skip


def mutated_bytes(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return one of the seeds with one to six mutations."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, other = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        way = rng.randrange(9)
        if way == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif way == 2:
            del data[at:other]
        elif way == 3:
            data[at:at] = data[at:other] * rng.choice((1, 2, 40))
        elif way == 4:
            data[at:other] = rng.choice(TOKENS)
        elif way == 5:
            data[at:at] = rng.choice(TOKENS)
        elif way == 6:
            del data[at:]
        elif way == 7:
            data[at:at] = rng.choice(seeds)[: rng.randrange(200)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        del data[2_000_000:]
    return bytes(data)


def nasty(rng: random.Random) -> Any:
    """Return an unusual value."""
    way = rng.randrange(8)
    if way < 3:
        return rng.choice(NUMBERS)
    if way < 5:
        return rng.choice(WORDS)
    if way == 5:
        return rng.choice(
            ([], {}, [[]], [None], {"": {}}, {"a": 1}, [1] * 5000, [10**9, 10**9], [0, 0], [3, 10**9, 10**9])
        )
    if way == 6:
        depth = rng.choice((50, 300, 900, 20_000))
        return Raw("[" * depth + "1" + "]" * depth if rng.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth)
    return {rng.choice(WORDS): rng.choice(NUMBERS) for _ in range(5)}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below `value`."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            found += [(item, key) for key in item]
            pending += item.values()
        elif isinstance(item, list):
            found += [(item, key) for key in range(len(item))]
            pending += item
    return found


def mutated_value(rng: random.Random, value: Any) -> Any:
    """Return a copy of a JSON value with one to four mutations."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 4))):
        known = places(value)
        if not known:
            return nasty(rng)
        holder, key = rng.choice(known)
        way = rng.randrange(6)
        if way < 3:
            holder[key] = nasty(rng)
        elif way == 3:
            del holder[key]
        elif way == 4 and isinstance(holder, dict):
            holder[rng.choice((*WORDS, key.upper(), f"{key} ", "genenc", "path"))] = holder.pop(key)
        else:
            other, place = rng.choice(known)
            moved = json.loads(written(other[place])) if not _has_raw(other[place]) else None
            holder[key] = moved if isinstance(holder, dict) else [moved] * rng.choice((1, 3, 300))
    return value


def _has_raw(value: Any) -> bool:
    return isinstance(value, Raw) or any(isinstance(holder[key], Raw) for holder, key in places(value))


def written(value: Any, rng: random.Random | None = None) -> str:
    """Serialise to JSON; with `rng`, sometimes with a duplicate key."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        items = [f"{json.dumps(str(key))}:{written(item, rng)}" for key, item in value.items()]
        if rng is not None and items and rng.random() < 0.02:
            items.append(f"{json.dumps(str(rng.choice(list(value))))}:{written(nasty(rng))}")
        return "{" + ",".join(items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, rng) for item in value) + "]"
    return json.dumps(value)

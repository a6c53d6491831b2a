"""Damage that checksums do not tell: tar headers and PNG chunks with other content and the sums that fit."""

from __future__ import annotations

import random
import struct
import zlib

from tests.support.fuzz.mutate import damage

BLOCK = 512
SIZES = [
    b"00000000000\0",
    b"77777777777\0",
    b"00000001000\0",
    b"\x80" + bytes(10) + b"\x09",
    b"\x80\0\0" + b"\xff" * 9,
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"          8 ",
    b"9999999999\0\0",
    b"-1\0\0\0\0\0\0\0\0\0\0",
    bytes(12),
]
KINDS = b"0\x001234567LKxXgSDMVN5A\xff"
NAMES = [
    b"../x.png",
    b"/x.png",
    b"s/cs1.png",
    b"s/cs3.csv",
    b"a" * 100,
    b"\xff.png",
    b"",
    b".",
    b"s/",
    b"\x1b.csv",
]
RECORDS = [
    b"20 size=12345678901\n",
    b"14 size=-1234\n",
    b"12 size=abc\n",
    b"26 GNU.sparse.size=abcdef\n",
    b"22 GNU.sparse.major=1\n",
    b"22 GNU.sparse.minor=0\n",
    b"30 GNU.sparse.map=0,1,2,3,4,5\n",
    b"29 GNU.sparse.numblocks=1000\n",
    b"34 GNU.sparse.realsize=9999999999\n",
    b"21 hdrcharset=BINARY\n",
    b"22 hdrcharset=\xff\xff\xff\xff\xff\xff\n",
    b"16 path=../../x\n",
    b"19 path=s/cs1.png\n",
    b"17 comment=abcd\n",
    b"12345678901234567890 path=x\n",
    b"99 path=x\n",
    b"0 path=x\n",
    b"3 path=x\n",
    b"junk",
    b"18 atime=12345.6\n",
    b"12 mtime=\xff\xfe\n",
]


def summed(header: bytes) -> bytes:
    """A tar header with its right checksum."""
    block = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(block) + header[156:]


def header(kind: bytes, size: bytes, name: bytes = b"x") -> bytes:
    """A tar header; ``size`` as it stands in it."""
    block = name[:100].ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size[:12].ljust(12, b"\0")
    block += b"00000000000\0" + b" " * 8 + kind + bytes(100) + b"ustar\x0000"
    return summed(block.ljust(BLOCK, b"\0"))


def padded(data: bytes) -> bytes:
    """Filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def extended(rng: random.Random) -> bytes:
    """One extended header and its content, or something that looks like one."""
    kind = rng.choice([b"L", b"K", b"x", b"x", b"x", b"g", b"X", b"S"])
    if kind in b"xXg":
        content = b"".join(rng.choice(RECORDS) for _ in range(rng.randint(1, 4)))
    else:
        content = rng.choice([*NAMES, b"n" * 5000])
    size = rng.choice([b"%011o\0" % len(content)] * 4 + SIZES)
    return header(kind, size) + padded(content)


def tar(data: bytes, rng: random.Random) -> bytes:
    """A tar with other headers, whose checksums fit."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    for _ in range(rng.randint(1, 3)):
        heads = [n for n, block in enumerate(blocks) if block[257:262] == b"ustar"] or [0]
        place = rng.choice(heads)
        if place >= len(blocks):  # all were lost
            break
        block = blocks[place].ljust(BLOCK, b"\0")
        match rng.randrange(8):
            case 0 | 1:
                blocks[place] = summed(block[:124] + rng.choice(SIZES) + block[136:])
            case 2:
                blocks[place] = summed(block[:156] + bytes([rng.choice(KINDS)]) + block[157:])
            case 3:
                blocks[place] = summed(rng.choice(NAMES)[:100].ljust(100, b"\0") + block[100:])
            case 4:
                blocks[place : place + 1] = [extended(rng), block]
            case 5:
                blocks[place : place + 1] = [
                    extended(rng) * rng.choice([2, 20, 2000 if rng.random() < 0.02 else 3])
                ]
            case 6:
                blocks[place] = summed(damage(block, rng)[:BLOCK].ljust(BLOCK, b"\0"))
            case 7:
                del blocks[place : place + rng.randint(1, 4)]
    return b"".join(blocks)


def zipped(data: bytes, rng: random.Random) -> bytes:
    """A zip with other numbers in its headers and directory."""
    out = bytearray(data)
    signs = [b"PK\1\2", b"PK\1\2", b"PK\3\4", b"PK\5\6"]
    places = [at for sign in signs for at in range(len(data)) if data.startswith(sign, at)] or [0]
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(places) + rng.randrange(4, 44, 2)
        number = rng.choice(
            [0, 1, 2, 8, 14, 40, 0xFFFF, 1 << 20, 1 << 31, 0xFFFFFFFF, len(data), rng.randrange(600)]
        )
        out[at : at + 4] = number.to_bytes(4, "little")[: rng.choice([2, 4])]
    return bytes(out)


def png(data: bytes, rng: random.Random) -> bytes:
    """A PNG with other chunks, whose checksums fit: other sizes, a second head, too few pixels."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.randint(1, 3)):
        if not chunks:
            break
        place = rng.randrange(len(chunks))
        kind, content = chunks[place]
        match rng.randrange(5):
            case 0:
                edges = [0, 1, 4, 8, 24, 8192, 65535, 13_000, 10**9, 2**31 - 1, 2**32 - 1]
                head = struct.pack(">II", rng.choice(edges), rng.choice(edges))
                rest = bytes(
                    [rng.choice([1, 2, 4, 8, 16]), rng.choice([0, 2, 3, 4, 6, 7]), 0, 0, rng.choice([0, 1])]
                )
                chunks[rng.choice([0, 0, place])] = (b"IHDR", head + rest)
            case 1:
                chunks[place] = (kind, damage(content, rng))
            case 2:
                chunks.insert(place, rng.choice(chunks))
            case 3:
                kinds = [
                    b"PLTE",
                    b"tRNS",
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"iCCP",
                    b"zTXt",
                    b"iTXt",
                    b"eXIf",
                    b"IDAT",
                ]
                chunks[place] = (
                    rng.choice(kinds),
                    rng.choice([content, b"", b"x\0\0" + zlib.compress(bytes(1 << 20))]),
                )
            case 4:
                del chunks[place]
    pieces = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return data[:8] + b"".join(pieces)

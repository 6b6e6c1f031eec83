"""Archives to measure with: made from a seed, the same bytes each time."""

import os
import random

BLOCK = 512
SEED = 4
END = bytes(10240)
FILE, LINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"


def header(name, kind=FILE, size=0, target="", mtime=1_700_000_000):
    """A ustar header, as GNU tar --format=ustar would write it for root."""
    name, target = name.encode(), target.encode()
    mode = 0o755 if kind == DIRECTORY else 0o644
    prefix = b""
    if len(name) > 100:
        at = name.index(b"/", len(name) - 101)
        prefix, name = name[:at], name[at + 1 :]
    fields = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, 0, 0, size, mtime)
    rest = b"%b%bustar\00000%b%b%b%b%b" % (
        kind,
        target.ljust(100, b"\0"),
        b"root".ljust(32, b"\0"),
        b"root".ljust(32, b"\0"),
        b"0000000\0" * 2,
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    checksum = sum(fields) + 8 * 32 + sum(rest)
    return fields + b"%06o\0 " % checksum + rest


class Pool:
    """Random bytes, cheaply: pieces of one block of them."""

    def __init__(self, rng):
        self.rng = rng
        self.bytes = rng.randbytes(1 << 20)

    def piece(self, size):
        at = self.rng.randrange(len(self.bytes) - size)
        return self.bytes[at : at + size]


def small_files(out, entries, contents=True, link="../../common/file.rs"):
    """Names and directories as in a distribution: a thousand entries to a directory, a tenth of them symbolic links,
    a fiftieth hard links; the others files of 0 to 2800 bytes, or empty ones. A million entries take 2 GB."""
    rng = random.Random(SEED)
    pool = Pool(rng)
    for n in range(entries):
        at = n % 1000
        if at == 0:
            parent = f"usr/share/package-{n // 1000:05}/lib"
            first = None
            out.write(header(parent, DIRECTORY))
            continue
        name = f"{parent}/module_{n:08}.rs"
        if at % 50 == 7 and first is not None:
            out.write(header(name, LINK, target=f"{parent}/module_{first:08}.rs"))
        elif at % 10 == 0:
            out.write(header(name, SYMLINK, target=link))
        else:
            first = n if first is None else first
            size = rng.randrange(2800) if contents else 0
            out.write(header(name, size=size, mtime=1_700_000_000 + n))
            if size:
                out.write(pool.piece(size))
                out.write(bytes(-size % BLOCK))
    out.write(END)


def large_files(out, count, size):
    """Files of random bytes that do not repeat within a MiB of each other."""
    rng = random.Random(SEED)
    pool = rng.randbytes(64 << 20)
    for n in range(count):
        out.write(header(f"large-{n}", size=size))
        left = size
        while left:
            piece = pool[: min(left, len(pool))]
            out.write(piece)
            left -= len(piece)
        out.write(bytes(-size % BLOCK))
    out.write(END)


def make(path, writer, *args):
    """Writes an archive to a file, and leaves it in the page cache with nothing of it to be written back."""
    with open(path, "wb", buffering=1 << 20) as out:
        writer(out, *args)
        out.flush()
        os.fsync(out.fileno())
    return path

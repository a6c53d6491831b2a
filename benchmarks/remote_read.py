"""What a reader behind a URL waits for: the first batch, and the rate after it; with and without ranges.

    python benchmarks/remote_read.py [--images 10000] [--rounds 3] [--delay 0.05] [--rate 40] [--order block]

A server of its own on loopback answers each request after --delay seconds and sends at most --rate MB/s
over all connections. Noise of 64 x 64 pixels as PNG (12 KB each), in shards of 1,000. Both sides run in
each round, each with an empty cache, in a process of its own: "ranges", as readers are, and "whole", where
every shard counts as small, so that it is waited for as a whole. Figures are medians: seconds from the opened
reader to its first batch of 128, the bytes that came in that time, and the share of the link's rate at which
the rest of the split came (0 where nothing was left). "reserve_ms": what it takes to find room in a cache of
--files files, with the account and with a look at all of them each time. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from shards.read import ShardReader
from shards.remote import ahead, cache

BATCH = 128
PIECE = 1 << 16


class Link:
    """A rate that all answers share, and what they have sent."""

    def __init__(self, rate: float) -> None:
        self.rate, self.sent, self._free, self._lock = rate, 0, 0.0, threading.Lock()

    def wait(self, size: int) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + size / self.rate
            until = self._free
            self.sent += size
        time.sleep(max(0.0, until - time.monotonic()))


def serve(folder: Path, delay: float, rate: float) -> None:
    """Serve ``folder``; the first line printed is the port. ``/sent`` tells the bytes that went out."""
    link = Link(rate)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/sent":
                return self._answer(200, str(link.sent).encode(), 0)
            time.sleep(delay)
            path = folder / self.path.rpartition("/")[2]
            if "Range" not in self.headers:
                return self._answer(200, path.read_bytes(), 1)
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            with path.open("rb") as file:
                file.seek(int(first))
                body = file.read(int(last) + 1 - int(first) if last else -1)
            return self._answer(206, body, 1, int(first))

        def _answer(self, code: int, body: bytes, counted: int, first: int = 0) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            if code == 206:
                self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/*")
            self.end_headers()
            for at in range(0, len(body), PIECE):
                piece = body[at : at + PIECE]
                link.wait(len(piece) * counted)
                self.wfile.write(piece)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.request_queue_size = 128
    print(server.server_address[1], flush=True)
    server.serve_forever()


def read(url: str, side: str, order: str, rate: float) -> dict[str, float]:
    """One side, with an empty cache."""
    from urllib.request import urlopen

    def sent() -> int:
        with urlopen(f"{url}/sent") as answer:
            return int(answer.read())

    if side == "whole":
        ahead.SMALL = 1 << 60
    with (
        tempfile.TemporaryDirectory() as folder,
        ShardReader(f"{url}/data", order=order, cache=cache.Cache(Path(folder)), threads=2) as reader,
    ):
        before, began = sent(), time.monotonic()
        reader.read(range(BATCH))
        first = time.monotonic() - began
        came, then = sent() - before, time.monotonic()
        needed = sum(shard.bytes for shard in reader.split.shards)
        copies = Path(folder) / reader.fingerprint
        while sum(path.stat().st_size for path in copies.glob("train-*.tar")) < needed:
            time.sleep(0.05)
        share = (sent() - before - came) / (time.monotonic() - then) / rate
    return {"first_batch_s": first, "first_batch_bytes": came, "link_share": share}


def reserve_ms(files: int) -> dict[str, float]:
    """Milliseconds of one reservation in a cache of so many files, with the account and without."""
    with tempfile.TemporaryDirectory() as name:
        store = cache.Cache(Path(name))
        (Path(name) / "x").mkdir()
        for n in range(files):
            (Path(name) / "x" / f"{n}").write_bytes(b"x")
        times: dict[str, list[float]] = {"account": [], "look": []}
        part = os.open(Path(name) / "x" / ".part", os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(20):
            for side, taken in times.items():
                if side == "look":
                    (Path(name) / ".lock").write_bytes(b"")
                began = time.perf_counter()
                store._reserve("http://x/y", part, 1, lambda: 0)
                taken.append(time.perf_counter() - began)
        os.close(part)
    return {side: statistics.median(taken) * 1e3 for side, taken in times.items()}


def pack(images: int, folder: Path) -> Path:
    source, out = folder / "source" / "noise", folder / "packed"
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    for n in range(images):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(source / f"{n:06}.png")
    command = [sys.executable, "-m", "shards.pack", str(source.parent), "--out", str(out), "--size", "64"]
    subprocess.run([*command, "--shard-size", "1000"], check=True, stdout=subprocess.DEVNULL)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=40.0, help="MB/s of the link")
    parser.add_argument("--order", default="block")
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rate = given.rate * 1e6
    if given.serve:
        return serve(given.serve, given.delay, rate)
    if given.read:
        print(json.dumps(read(*given.read, given.order, rate)))
        return None
    with tempfile.TemporaryDirectory() as folder:
        packed = pack(given.images, Path(folder))
        options = ["--delay", str(given.delay), "--rate", str(given.rate), "--order", given.order]
        server = [sys.executable, __file__, "--serve", str(packed), *options]
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout
                url = f"http://127.0.0.1:{int(process.stdout.readline())}"
                found: dict[str, list[dict[str, float]]] = {"ranges": [], "whole": []}
                for _ in range(given.rounds):
                    for side, rows in found.items():
                        command = [sys.executable, __file__, "--read", url, side, *options]
                        rows.append(json.loads(subprocess.check_output(command, timeout=600)))
            finally:
                process.terminate()
    result: dict[str, object] = {
        side: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for side, rows in found.items()
    }
    first = {side: statistics.median(row["first_batch_s"] for row in rows) for side, rows in found.items()}
    result["first_batch_whole_over_ranges"] = first["whole"] / first["ranges"]
    result["reserve_ms"] = reserve_ms(given.files)
    print(json.dumps(result, indent=1))
    return None


if __name__ == "__main__":
    main()

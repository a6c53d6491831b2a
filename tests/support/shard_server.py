"""A server of packed folders that fails as it is told to."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from shards.table import Index


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``trouble`` maps a file's name to what goes wrong with its first answers.

    ``of_ranges`` is what goes wrong with all that ask for a range from somewhere to somewhere. Whole
    files are sent when ``may_send`` is set.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.trouble: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.of_ranges = ""
        self.connections = 0
        self.may_send = threading.Event()
        self.may_send.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # connections are kept

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = unquote(self.path.rpartition("/")[2])
        self.server.asked[name] += 1
        path = self.server.folder / name
        if not path.is_file():
            return self.send_error(404)
        trouble = self.server.trouble.get(name, [])
        asked = self.headers.get("Range", "-")
        if asked.endswith("-"):
            now = trouble.pop(0) if trouble else ""
            if name.endswith(".tar"):
                self.server.may_send.wait(60)
        else:
            now = self.server.of_ranges
        if now.isdigit():
            return self.send_error(int(now))
        size = path.stat().st_size
        if "Range" in self.headers and now != "no range":
            self.server.ranges.append(self.headers["Range"])
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, size) if last else size
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            start, end = 0, size
            self.send_response(200)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(end - start)
        if now == "wrong":
            body = bytes(len(body))
        if now == "long":
            body += b"more"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if now == "drop" else body)
        self.close_connection = now in ("drop", "close")
        return None


def shards_of(folder: Path) -> list[str]:
    return [shard.name for shard in Index.load(folder).split("train").shards]

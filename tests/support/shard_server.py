"""A server of packed folders that fails as it is told to."""

from __future__ import annotations

import http.server
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from shards.table import Index


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``trouble`` maps a file's name to what goes wrong with its first answers."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.trouble: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = unquote(self.path.rpartition("/")[2])
        self.server.asked[name] += 1
        path = self.server.folder / name
        if not path.is_file():
            return self.send_error(404)
        trouble = self.server.trouble.get(name, [])
        now = trouble.pop(0) if trouble else ""
        if now.isdigit():
            return self.send_error(int(now))
        data, start = path.read_bytes(), 0
        if now == "wrong":
            data = bytes(len(data))
        if now == "long":
            data += b"more"
        if "Range" in self.headers and now != "no range":
            self.server.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if now == "drop" else body)
        return None


def shards_of(folder: Path) -> list[str]:
    return [shard.name for shard in Index.load(folder).split("train").shards]

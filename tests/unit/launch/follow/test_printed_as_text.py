"""What events, logs and folders say is shown as text, by every command: neither markup nor escapes act."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from launch import jobs
from launch.job import registry
from launch.scheduler import query

NAME = "lr[a] [bold]漢字 é [/x]"
GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:20034"
)
DATA = st.one_of(
    st.sampled_from(
        [GLOO, "[/bold]", "[link=x]", "\x1b[31mred", "\x1b]0;title\x07", "\u202e", "漢字", "\ud800"]
    ),
    st.text(st.characters(codec=None), max_size=40),
)
COMMANDS = ["list", "status", "status --json", "goodput", "logs", "cancel"]


def make(folder: Path, words: list[str]) -> Path:
    """A run by hand that is over, whose ledger, log and list of jobs hold these words."""
    run = folder / NAME
    logs = run / "job" / "001"
    logs.mkdir(parents=True)
    why, node, section, name = words
    cluster = node[:100].encode(errors="ignore").decode() or "x"  # a line with half a character is left out
    ledger.record(run, "submitted", job="5", name="job", cluster=cluster, folder=str(logs))
    ledger.record(run, "started", job="5", restart=0)
    ledger.record(run, "start", steps=10)
    ledger.record(run, "failed", rank=0, code=1, why=why)
    ledger.record(run, "save_failed", step=3, why=section)
    ledger.record(run, "ended", job="5", code=1, why=why, rank=0, node=node[:200])
    ledger.record(run, "slow", rank=0, node=name[:200], why=name)
    ledger.beat(run, 3, 10, section[:90] or "x")
    (logs / "5_0_log.out").write_bytes(f"{why}\n{section}".encode(errors="surrogatepass"))
    registry.remember(run, "5", cluster)
    return run


@given(st.lists(DATA, min_size=4, max_size=4))
def test_nothing_in_it_acts(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary, patch.dict(os.environ, {"XDG_STATE_HOME": temporary}):
        run = make(Path(temporary) / "runs", words)
        nothing = query.Known()
        for command in COMMANDS:
            out = io.StringIO()
            with (
                contextlib.redirect_stdout(out),
                patch.object(query, "ask", return_value=nothing),
                contextlib.suppress(InputError),  # whose line is printable: tests/unit/diffbase/test_cli.py
            ):
                name, *flags = command.split()
                jobs.main([name, *flags, *([] if name == "list" else [str(run)])])
            shown = out.getvalue()
            acting = [c for c in shown if not c.isprintable() and c not in "\n\r\t"]
            assert not acting, (command, acting)
            if command in ("list", "status"):
                assert NAME in shown, command
            if command == "status --json":
                assert json.loads(shown)["run"] == str(run)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_whatever_the_terminal_can_show(encoding: str, tmp_path: Path) -> None:
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONIOENCODING": encoding}
    with patch.dict(os.environ, env):
        run = make(tmp_path, [GLOO, "n1", "漢字", "é"])
    for command in ("list", "status", "logs"):
        words = [sys.executable, "-m", "launch.jobs", command, *([] if command == "list" else [str(run)])]
        done = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert (GLOO if command == "logs" else "lr[a] [bold]").encode() in done.stdout

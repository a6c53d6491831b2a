"""What goes into bug reports: no secret, home, user or host, and what the reader gave as he gave it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.doctor.redaction import HIDDEN, LENGTH, Redaction

ALICE = {"HOME": "/data/people/alice", "USER": "alice", "HOSTNAME": "node7.cluster.example"}
CLEAN = Redaction(
    secrets=("s3cr3t/value+1",),
    homes=("/data/people/alice",),
    users=("alice",),
    hosts=("node7.example", "node7"),
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/people/alice/runs/x.yaml: no", "~/runs/x.yaml: no"),
        ("'/data/people/alice'", "'~'"),
        ("file:///data/people/alice/x", "file://~/x"),
        ("/data/people/alice2/x", "/data/people/alice2/x"),  # another folder, and not below a home
        ("/home/bob/x and /Users/carol/y", "~/x and ~/y"),
        ("[Errno 2] No such file or directory: '/home/bob/data/index.json'", None),
        ("/nfs/vol1/home/bob/x", "~/x"),
        ("/cluster/home2/bob/x", "~/x"),
        ("/root/.cache/x", "~/.cache/x"),
        ("/srv/root/x", "/srv/root/x"),
        ("/scratch/alice/runs", "/scratch/USER/runs"),
        ("alice@node7: refused", "USER@HOST: refused"),
        ("s3://bucket%2Falice%2Fx", "s3://bucket%2FUSER%2Fx"),
        ("alicent and malice stay", "alicent and malice stay"),
        ("node7.example and node7, not node70", "HOST and HOST, not node70"),
        ("a s3cr3t/value+1 b", f"a {HIDDEN} b"),
        ("q=s3cr3t%2Fvalue%2B1", f"q={HIDDEN}"),
        ("https://bob:pw@host.example/x", "https://host.example/x"),
        ("https://bob:p@w@host.example/x", "https://host.example/x"),
        ("https://bob:p/w@host.example/x", "https://host.example/x"),
        ("https://tok@host.example:8080/x@y", "https://host.example:8080/x@y"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("https://h.example/x?X-Amz-Signature=abc&y=1: HTTP 403", f"https://h.example/x?{HIDDEN} HTTP 403"),
        ("token = abcdef", f"token = {HIDDEN}"),
        ("{'password': 'abc'}", f"{{'password': {HIDDEN}"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {HIDDEN}"),
        ("hf_abcdefghijklmnop", HIDDEN),
        ("AKIAIOSFODNN7EXAMPLE", HIDDEN),
        ("connect to [10.1.2.3]:29500 failed", "connect to ADDRESS failed"),
        ("connect to 10.1.2.3:29500 failed", "connect to ADDRESS failed"),
        ("connect to [fe80::1%eth0]:29500 failed", "connect to ADDRESS failed"),
        ("opencv 4.10.0.84", "opencv 4.10.0.84"),
        ("two\nlines\tand \x1b[31mcolour\x1b[0m\x07", "two lines and colour"),
        ("torch>=2.11,<2.14", "torch>=2.11,<2.14"),
    ],
)
def test_texts(text: str, shown: str | None) -> None:
    assert CLEAN(text) == (shown or "[Errno 2] No such file or directory: '~/data/index.json'")


def test_what_was_given_is_shown_as_it_was_given() -> None:
    given_ = ("/home/bob/data", "/data/people/alice/run", "alice")
    clean = Redaction(given=given_, homes=CLEAN.homes, users=CLEAN.users, hosts=CLEAN.hosts)
    assert clean("/home/bob/data/index.json: not found") == "/home/bob/data/index.json: not found"
    assert clean("/data/people/alice/run/job") == "/data/people/alice/run/job"
    assert clean("/home/bob/data2 and /home/bob") == "~/data2 and ~"
    assert clean("/data/people/alice/other") == "~/other"  # the word alone was given, not this path
    assert clean("no profile 'alice'") == "no profile 'alice'"


@pytest.mark.parametrize("given_", ["/home", "/", ".", "/data/people", "home", "people"])
def test_what_lies_above_a_home_gives_no_home_away(given_: str) -> None:
    clean = Redaction((given_,), homes=CLEAN.homes, users=CLEAN.users)
    assert clean("/home/bob/x /data/people/alice/y ./home/bob") == "~/x ~/y .~"
    assert clean(f"{given_}: full") == f"{given_}: full"


def test_credentials_go_even_from_what_was_given() -> None:
    url = "https://bob:pw@node7/x?sig=1"
    clean = Redaction(given=(url, "/x/s3cr3t/value+1"), secrets=CLEAN.secrets, hosts=CLEAN.hosts)
    assert clean(f"{url} and /x/s3cr3t/value+1") == f"https://node7/x?{HIDDEN} and /x/{HIDDEN}"


def test_files_below_a_url_that_was_given() -> None:
    clean = Redaction(("https://10.0.0.1:90/alice?sig=1",), users=CLEAN.users)
    assert clean("https://10.0.0.1:90/alice/index.json?sig=1: HTTP 403") == (
        f"https://10.0.0.1:90/alice/index.json?{HIDDEN} HTTP 403"
    )
    assert clean("https://10.0.0.2:90/alice") == "https://ADDRESS/USER"


def test_a_long_text_is_cut_and_not_through_a_secret() -> None:
    shown = CLEAN("x " * 10_000)
    assert len(shown) == LENGTH
    # Of a secret at the edge of what is read at all, half would not be recognised.
    for before in range(3960, 4000):
        assert "s3cr" not in CLEAN("\x00" * (before - 5) + " " * 5 + "s3cr3t/value+1")


def test_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu12.cluster.example")
    environ = ALICE | {"WANDB_API_KEY": "0123456789abcdef", "HF_TOKEN": "tiny", "PATH": "/usr/bin:/bin"}
    clean = Redaction.here([None, "runs/alice/", ""], environ)
    assert clean.given == ("runs/alice",)
    assert clean("0123456789abcdef in /data/people/alice") == f"{HIDDEN} in ~"
    assert clean("gpu12 gpu12.cluster.example node7") == "HOST HOST HOST"
    assert clean("tiny /usr/bin") == "tiny /usr/bin"  # too short for a secret; no secret
    assert clean("runs/alice/1 of alice") == "runs/alice/1 of USER"


def test_a_home_behind_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "volumes" / "x", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    clean = Redaction.here(environ={"HOME": str(link)})
    assert clean(f"{link}/a {real}/b") == "~/a ~/b"


def test_the_texts_of_real_exceptions(tmp_path: Path) -> None:
    clean = Redaction.here(environ={"HOME": str(tmp_path), "HUB_PASSWORD": "correct horse\nbattery"})
    try:
        (tmp_path / "no" / "such").read_text()
    except OSError as error:
        assert clean(str(error)) == "[Errno 2] No such file or directory: '~/no/such'"
    assert clean("ValueError: correct horse\nbattery") == f"ValueError: {HIDDEN}"


BETWEEN = st.text(st.sampled_from(" /:'\"=,()[]@\n.ä\0\x1b"), min_size=1, max_size=3)
PRIVATE = (
    "/data/people/alice",
    "alice",
    "node7",
    "node7.example",
    "s3cr3t/value+1",
    "/home/bob",
    "https://u:pw@h/",
)


@given(
    st.lists(st.tuples(BETWEEN, st.sampled_from([*PRIVATE, "index", "x.py", "given/path"])), max_size=8),
    BETWEEN,
)
def test_nothing_private_is_left(parts: list[tuple[str, str]], end: str) -> None:
    """Whatever is around it, short of other letters."""
    clean = Redaction(("given/path",), CLEAN.secrets, CLEAN.homes, CLEAN.users, CLEAN.hosts)
    shown = clean("".join(map("".join, parts)) + end)
    for private in ("alice", "node7", "s3cr3t", "bob", "u:pw"):
        assert private not in shown


def test_the_same_text_twice() -> None:
    text = "https://u:p@h/x?y /home/bob/z alice node7 s3cr3t/value+1 [10.0.0.1]:5"
    assert CLEAN(CLEAN(text)) == CLEAN(text)


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_THING", "very-hidden-value")
    assert Redaction.here()("very-hidden-value") == HIDDEN
    assert os.environ["MY_SECRET_THING"] == "very-hidden-value"

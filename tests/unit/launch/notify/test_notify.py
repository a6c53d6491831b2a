"""News of a job: to a real HTTP server and a real program, within a time limit, and without a secret told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.exits import BAD_INPUT, DONE, FATAL, PREEMPTED, RETRYABLE
from diffbase.files import REPOSITORY
from launch.ask import profile
from launch.ask.profile import Cluster, Notify
from launch.job.folder import Place, write_spec
from launch.notify.deliver import deliver, post
from launch.supervise import leader as module
from launch.supervise.environment import Layout
from launch.supervise.leader import Leader
from launch.supervise.meeting import Plan
from launch.supervise.news import News
from launch.supervise.requeue import Answer
from tests.support.a_life import job_of, life_of, write_profile

TOKEN = "xoxb-very-secret-token"


class Server(ThreadingHTTPServer):
    """Answers by path: /ok, /slow (only when it is released), /moved (to /ok), and else 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.release = threading.Event()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), json.loads(body)))
        path = self.path.split("/")[1]
        if path == "slow":
            self.server.release.wait(60)
        self.send_response({"ok": 204, "slow": 204, "moved": 307}.get(path, 404))
        self.send_header("Location", self.server.address("/ok/moved"))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.release.set()
        running.shutdown()
        thread.join()


# --- what a profile may say ---


def test_a_webhook_that_others_could_read_is_refused(tmp_path: Path) -> None:
    text = f"notify: {{webhook: 'https://h/{TOKEN}'}}"
    assert profile.load(write_profile(tmp_path, text)).notify is not None
    for mode in (0o640, 0o604):
        with pytest.raises(InputError, match="chmod 600") as error:
            profile.load(write_profile(tmp_path, text, mode))
        assert TOKEN not in str(error.value)
    assert profile.load(write_profile(tmp_path, "notify: {command: [mail]}", 0o644)).notify is not None


def test_a_profile_that_tells_nobody_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nobody to tell"):
        profile.load(write_profile(tmp_path, "notify: {events: [done]}"))
    with pytest.raises(InputError, match="notify"):
        profile.load(write_profile(tmp_path, "notify: {command: [mail], events: [lunch]}"))


def test_the_secret_is_not_in_the_run_folder(tmp_path: Path) -> None:
    cluster = profile.load(write_profile(tmp_path, f"notify: {{webhook: 'https://h/{TOKEN}'}}"))
    spec = job_of(cluster)
    run = tmp_path / "run" / "job" / "001"
    run.mkdir(parents=True)
    write_spec(Place(run), spec)
    assert TOKEN not in (run / "job.json").read_text() + repr(spec) + repr(cluster) + str(spec.model_dump())
    again = Place(run).spec().cluster.notify
    assert again is not None and again.webhook is None and again.webhook_in == tmp_path / "site.yaml"


# --- handing it over ---


def test_a_webhook_gets_the_json(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = server.address(f"/ok/{TOKEN}")
    cluster = profile.load(write_profile(tmp_path, f"notify: {{webhook: '{address}'}}"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not for this machine's own addresses
    monkeypatch.setenv("HOOK", server.address("/ok/env"))
    assert cluster.notify is not None
    kept = Notify.model_validate(cluster.notify.model_dump() | {"webhook_env": "HOOK"})
    assert deliver(kept, {"event": "done", "why": "Grüße [x]"}) == []
    assert {path for path, _, _ in server.got} == {f"/ok/{TOKEN}", "/ok/env"} and len(server.got) == 2
    for _, headers, body in server.got:
        assert headers["Content-Type"] == "application/json" and body == {"event": "done", "why": "Grüße [x]"}


@pytest.mark.parametrize(
    ("path", "problem"), [("/moved/", "HTTP status 307"), ("/gone/", "HTTP status 404"), ("/slow/", "")]
)
def test_what_goes_wrong_is_a_line_without_the_address(server: Server, path: str, problem: str) -> None:
    line = post(server.address(path + TOKEN), b"{}", 0.5)
    assert line is not None and problem in line and "127.0.0.1" in line and TOKEN not in line
    assert [path for path, _, _ in server.got] == [path + TOKEN]  # nothing follows a redirect


@pytest.mark.parametrize(
    "address",
    ["http://example.org/x", "ftp://localhost/x", "file:///etc/passwd", "https://", "x", "http://[1"],
)
def test_only_https_leaves_the_machine(address: str) -> None:
    line = post(address, b"{}", 5)
    assert line is not None and line.startswith("webhook: the address is") and address not in line


def test_an_address_that_python_refuses_is_not_shown() -> None:
    for address in (
        f"http://127.0.0.1:1/{TOKEN}",
        f"http://127.0.0.1:x/{TOKEN}",
        f"http://127.0.0.1/a {TOKEN}",
    ):
        line = post(address, b"{}", 5)
        assert line is not None and TOKEN not in line


def test_a_changed_profile_is_a_line(tmp_path: Path) -> None:
    path = write_profile(tmp_path, f"notify: {{webhook: 'https://h/{TOKEN}'}}")
    kept = profile.load(path).notify
    assert kept is not None
    path.chmod(0o666)
    (line,) = deliver(kept, {})
    assert "written by" in line and TOKEN not in line
    write_profile(tmp_path, "notify: {command: [x]}")
    (line,) = deliver(kept, {})
    assert "no notify.webhook any more" in line
    path.unlink()
    assert "site.yaml" in deliver(kept, {})[0]
    (line,) = deliver(Notify(webhook_env="NOT_SET_HERE"), {})
    assert "NOT_SET_HERE is not set" in line


@pytest.mark.parametrize(
    "text",
    [
        f"notify: https://h/{TOKEN}",
        f"notify: {{webhook: ['https://h/{TOKEN}']}}",
        f"notify: {{webhook: 'https://h/x', webhoook: 'https://h/{TOKEN}'}}",
        f"notify: {{webhook: 'https://h/x', command: 'https://h/{TOKEN}'}}",
        f"notify: {{webhook: 'https://h/{TOKEN}'",
        f"https://h/{TOKEN}",
    ],
)
def test_a_profile_that_was_spoilt_is_not_quoted(text: str, tmp_path: Path) -> None:
    path = write_profile(tmp_path, f"notify: {{webhook: 'https://h/{TOKEN}'}}")
    kept = profile.load(path).notify
    assert kept is not None
    write_profile(tmp_path, text)
    assert deliver(kept, {}) == [f"webhook: {path} is no profile that can be used any more"]


def test_a_command_gets_it_as_its_input(tmp_path: Path) -> None:
    out = tmp_path / "got [a].json"
    command = ("sh", "-c", 'cat > "$0"; echo nobody reads this', str(out))
    assert deliver(Notify(command=command), {"event": "failed"}) == []
    assert json.loads(out.read_text()) == {"event": "failed"}
    assert deliver(Notify(command=("sh", "-c", "echo '[/x]' >&2; exit 3")), {}) == ["sh: exit code 3: [/x]"]
    assert "No such file" in deliver(Notify(command=("/no/such/program",)), {})[0]
    assert "not done after 0.2 s" in deliver(Notify(command=("sleep", "60"), seconds=0.2), {})[0]


def test_a_command_that_hangs_does_not_keep_the_news_from_the_webhook(server: Server) -> None:
    asked = {"settings": {"command": ["sleep", "60"], "webhook_env": "HOOK", "seconds": 2}, "news": {"a": 1}}
    done = subprocess.run(
        [sys.executable, "-m", "launch.notify"], input=json.dumps(asked), text=True, capture_output=True,
        cwd=REPOSITORY, env={**os.environ, "HOOK": server.address("/ok/x")}, timeout=120,
    )  # fmt: skip
    assert done.returncode == RETRYABLE and "not done after 2 s" in done.stderr
    assert [body for _, _, body in server.got] == [{"a": 1}]


def test_a_server_that_never_answers_takes_no_time_from_the_others(server: Server, tmp_path: Path) -> None:
    hook = server.address(f"/slow/{TOKEN}")
    kept = profile.load(write_profile(tmp_path, f"notify: {{webhook: '{hook}', seconds: 3}}")).notify
    assert kept is not None
    command = ["sh", "-c", f"sleep 1; cat > {tmp_path}/got"]  # done before the server's time is over
    settings = kept.model_dump(mode="json") | {"command": command, "webhook_env": "HOOK"}
    done = subprocess.run(
        [sys.executable, "-m", "launch.notify"], text=True, capture_output=True, timeout=120, cwd=REPOSITORY,
        input=json.dumps({"settings": settings, "news": {"a": 1}}),
        env={**os.environ, "HOOK": server.address("/ok/x")},
    )  # fmt: skip
    assert not server.release.is_set() and {path for path, _, _ in server.got} == {f"/slow/{TOKEN}", "/ok/x"}
    assert json.loads((tmp_path / "got").read_text()) == {"a": 1}
    (line,) = done.stderr.splitlines()
    assert done.returncode == RETRYABLE and "no answer in" in line and TOKEN not in line


def test_a_command_ends_with_its_time(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert deliver(Notify(command=("sh", "-c", f"echo $$ > {pid}; exec sleep 60"), seconds=1), {})
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


# --- from the supervisor ---


def test_the_news_of_a_life_are_sent(tmp_path: Path, server: Server) -> None:
    text = f"notify: {{webhook: '{server.address('/ok/x')}', events: [done, failed]}}"
    life = life_of(tmp_path, profile.load(write_profile(tmp_path, text)))
    ledger.beat(life.run_folder, 3, 10, "train")
    news = News(life)
    news.tell("requeued", 0, "not asked for")
    news.tell("failed", 2, "given up at https://u:pass@h/x?sig=1 [n1]\nand more")
    news.close()
    ((_, _, body),) = server.got
    assert (body["event"], body["attempt"], body["step"], body["job"]) == ("failed", 2, 3, "7")
    assert body["why"] == "given up at https://h/x?*** [n1] and more"
    assert body["text"] == f"j (job 7 on site): failed at step 3/10: {body['why']}"


def test_a_server_that_hangs_holds_nobody_up(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    text = f"notify: {{webhook: '{server.address(f'/slow/{TOKEN}')}', seconds: 1}}"
    news = News(life_of(tmp_path, profile.load(write_profile(tmp_path, text))))
    news.tell("done", 0, "done")
    deadline = time.monotonic() + 60
    while not server.got and time.monotonic() < deadline:
        time.sleep(0.05)
    assert news._under_way  # it did not wait
    news.close()  # not for longer than its limit: the server has not been released
    assert not server.release.is_set() and server.got and not news._under_way
    told = capfd.readouterr()
    assert "notify: " in told.err and TOKEN not in told.err + told.out


def test_a_process_that_cannot_start_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = life_of(tmp_path, Cluster(name="x", notify=Notify(command=("true",))))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    news = News(life)
    news.tell("done", 0, "done")
    news.close()
    assert "No such file" in life.said[0]


@pytest.mark.parametrize(
    ("code", "event"),
    [
        (DONE, "done"),
        (FATAL, "failed"),
        (BAD_INPUT, "failed"),
        (RETRYABLE, "stopped"),
        (PREEMPTED, "stopped"),
    ],
)
def test_the_end_of_a_life_is_told(
    code: int, event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(News, "tell", lambda self, event, attempt, why: told.append((event, attempt)))
    Leader(life_of(tmp_path, Cluster(name="x"))).leave(Plan(4, leave=True, code=code, why="so"))
    assert told == [(event, 4)]


def test_a_requeue_is_told_after_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    life = life_of(tmp_path, Cluster(name="x"))
    life.spec = life.spec.model_copy(update={"requeue": True})
    monkeypatch.setattr(News, "tell", lambda self, event, attempt, why: told.append(event))
    for again, event in ((True, "requeued"), (False, "stopped")):

        def asked(where: Layout, avoid: Any, again: bool = again) -> Answer:
            told.append("asked")
            return Answer("so it is", again)

        monkeypatch.setattr(module.requeue, "requeue", asked)
        Leader(life).leave(Plan(4, leave=True, code=RETRYABLE, why="so"))
        assert told == ["asked", event]
        told.clear()


@pytest.mark.parametrize(("by_hand", "told"), [(True, []), (False, ["requeued"])])
def test_a_lost_attempt_was_queued_again_unless_a_person_submitted(
    by_hand: bool, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(News, "tell", lambda self, event, attempt, why: found.append(event))
    lead = Leader(life_of(tmp_path, Cluster(name="x")))
    place = {"name": "j", "cluster": "x", "folder": str(lead.run)}
    ledger.record(lead.run, "submitted", job="7", **place)
    ledger.record(lead.run, "started", attempt=0, job="7", restart=0, nodes=["n1"])
    ledger.record(lead.run, "first_step", attempt=0, step=5)
    ledger.record(lead.run, "submitted", job="8", **place, **({} if by_hand else {"takeover": True}))
    lead._close_lost_attempt()
    assert [event for event in found if event != "no_progress"] == told


def test_an_attempt_without_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(News, "tell", lambda self, event, attempt, why: told.append(event))
    lead = Leader(life_of(tmp_path, Cluster(name="x")))
    ledger.record(lead.run, "first_step", attempt=0, step=5)
    lead._record_end(0, module.Verdict(RETRYABLE, "lost"))  # it got to step 5
    lead._record_end(1, module.Verdict(RETRYABLE, "lost again"))
    lead._record_end(2, module.Verdict(PREEMPTED, "stopped"))
    assert told == ["no_progress"]

"""News of a job: to a real HTTP server and a real program, within a time limit, and without a secret told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.exits import BAD_INPUT, DONE, FATAL, PREEMPTED, RETRYABLE
from diffbase.files import REPOSITORY
from launch.ask import profile
from launch.ask.profile import Cluster, Notify
from launch.ask.spec import JobSpec
from launch.job.folder import Place, write_spec
from launch.notify import textfile
from launch.notify.deliver import deliver, post
from launch.supervise import leader as module
from launch.supervise.environment import Layout
from launch.supervise.leader import Leader
from launch.supervise.limits import Limits
from launch.supervise.meeting import Meeting, Plan
from launch.supervise.news import News
from launch.supervise.requeue import Answer

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


def write_profile(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


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
    spec = job(cluster)
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
    assert [path for path, _, _ in server.got] == [f"/ok/{TOKEN}", "/ok/env"]
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


# --- from the supervisor ---


def job(cluster: Cluster) -> JobSpec:
    return JobSpec(
        cluster=cluster, job="j", nodes=1, nodes_min=1, tasks_per_node=1, gpus_per_node=0, cpus_per_task=1,
        minutes=60, requeue=False,
    )  # fmt: skip


def life_of(tmp_path: Path, cluster: Cluster) -> Any:
    run = tmp_path / "run"
    live = run / "job" / "001" / "live"
    live.mkdir(parents=True)
    meeting = Meeting(live, "7.0.0")
    meeting.open()
    life: Any = SimpleNamespace(
        where=Layout("7", "7.0.0", 0, 0, 1, 0, 1, 0, ("n1",)), meeting=meeting, run_folder=run,
        spec=job(cluster), asked=0, said=[], tick=lambda: None, used_up=False,
        limits=Limits(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    life.say = life.said.append
    return life


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


# --- figures for node_exporter ---


def test_the_textfile_is_what_node_exporter_reads(tmp_path: Path) -> None:
    run = tmp_path / 'a "b" \\ c'
    run.mkdir()
    ledger.record(run, "start", steps=10, pid=1, host="x")
    ledger.beat(run, 3, 10, "train")
    line = {"step": 3, "train/samples": 12, "train/images_per_second": 8.0, "memory/process_mib": 2.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    out = tmp_path / "x.prom"
    command = [sys.executable, "-m", "launch.notify.textfile", str(run), "--out", str(out), "--name", "n"]
    child = subprocess.Popen(command, cwd=REPOSITORY, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        figures = parse(out.read_text())
        assert out.stat().st_mode & 0o777 == 0o644
        assert {name: value for name, _, value in figures} == {
            "diffcore_step": 3.0, "diffcore_steps": 10.0, "diffcore_steps_per_second": 2.0,
            "diffcore_goodput_ratio": 0.0, "diffcore_memory_bytes": 2.0 * 2**20,
            "diffcore_checkpoint_step": 0.0, "diffcore_failed_attempts": 0.0,
            "diffcore_heartbeat_timestamp_seconds": figures[-1][2],
        }  # fmt: skip
        assert all(labels == {"run": str(run), "name": "n", "job": ""} for _, labels, _ in figures)
        child.terminate()
        assert child.wait(30) == 0 and not out.exists() and [p.name for p in tmp_path.iterdir()] == [run.name]
    finally:
        child.kill()
        child.wait()


def parse(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Prometheus' text format, strictly: HELP, TYPE, sample of one name after the other, a line end each."""
    lines = text.split("\n")
    assert lines.pop() == "" and len(lines) % 3 == 0
    found = []
    for i in range(0, len(lines), 3):
        name = lines[i].split(" ")[2]
        assert lines[i].startswith(f"# HELP {name} ") and lines[i + 1] == f"# TYPE {name} gauge"
        sample, value = lines[i + 2].rsplit(" ", 1)
        assert sample.startswith(name + "{") and sample.endswith("}")
        # Labels are quoted as JSON quotes, for these characters.
        pairs = sample[len(name) + 1 : -1].replace('",', '"\n').split("\n")
        found.append(
            (name, {k: json.loads(v) for k, v in (pair.split("=", 1) for pair in pairs)}, float(value))
        )
    return found


ENDS_AT_ONCE = """
import os, subprocess, sys
from launch.supervise.news import _outlive_signals
flags = ["--out", sys.argv[2], "--seconds", "0.1", "--parent", str(os.getpid())]
command = [sys.executable, "-m", "launch.notify.textfile", sys.argv[1], *flags]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
print(subprocess.Popen(command, preexec_fn=_outlive_signals, **quiet).pid)
"""


def test_the_writer_ends_with_a_parent_that_ends_before_it_has_begun(tmp_path: Path) -> None:
    ledger.record(tmp_path, "start", steps=10)
    command = [sys.executable, "-c", ENDS_AT_ONCE, str(tmp_path), str(tmp_path / "x.prom")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120)
    pid = int(done.stdout)
    try:
        deadline = time.monotonic() + 60
        while runs(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not runs(pid) and not (tmp_path / "x.prom").exists()
    finally:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether it does; whoever takes up orphans need not wait for them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_folder_that_is_not_there_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            sys.exit(0)

    monkeypatch.setattr(textfile.time, "sleep", sleep)
    monkeypatch.setattr(textfile, "die_with_parent", lambda number: None)  # it is not this process's
    monkeypatch.setattr(textfile.signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit):
        textfile.main([str(tmp_path), "--out", str(tmp_path / "none" / "x.prom"), "--seconds", "2"])
    said = capsys.readouterr().err
    assert looks == [2.0] * 3 and said.count("launch: prometheus: ") == 1 and "No such file" in said


def test_the_supervisor_starts_it_once_and_ends_it(tmp_path: Path) -> None:
    text = f"prometheus: {{folder: {tmp_path}, seconds: 1}}"
    life = life_of(tmp_path, profile.load(write_profile(tmp_path, text)))
    ledger.record(life.run_folder, "start", steps=10)
    out = tmp_path / "diffcore-site-7.prom"
    news = News(life)
    news.show_figures()
    child = news._figures
    news.show_figures()
    assert child is not None and news._figures is child
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "diffcore_step" in out.read_text()
    news.close()
    assert child.poll() == 0 and not out.exists()

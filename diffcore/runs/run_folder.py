"""The run folder: what belongs to one experiment, and the check that a resume is of the same one."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffbase import ledger
from diffbase.cli import InputError, one_line
from diffbase.explain import validated
from diffbase.files import REPOSITORY, open_atomic, write_json
from diffbase.formats import json_file
from diffbase.locking.lock import Lock
from diffbase.machine.ports import RENDEZVOUS
from diffbase.redaction import without_credentials, without_url_secrets
from diffbase.system_error import is_there, names_in
from diffbase.trust import check_entries, closed_above, group_name, is_shown, own_folder, show
from diffbase.version import VERSION
from diffcore.config.configure import replace
from diffcore.config.diffusion import FIRST_DRAWS, NEWEST_DRAWS
from diffcore.config.tree import Access, Config, OrderName
from diffcore.memory import promise
from shards.schema import Attribute

if TYPE_CHECKING:
    from shards.table import Index

LOCK = ".lock"
EARLY = ("job", "events.jsonl", "heartbeat.json", "stacks", promise.FILE)
"""What a launcher, or a hang, may have put into the folder before there is a run."""
DRAWS, ORDER = "diffusion.draws", "data.order"
FIRST: dict[str, Any] = {DRAWS: FIRST_DRAWS, ORDER: "full"}
"""What runs had that are older than these settings."""
JOB_TEXTS = ("*_log.out", "*_log.err", "controller.log", "sweep.txt")
"""Of a job's folder what a group may read; the rest is code, and settings that may hold secrets."""
SHARED, PRIVATE = 0o640, 0o600
OVERLAP = 60.0
"""Seconds that a launcher's attempt waits for the end of the one before it."""

STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class AttributeRecord(BaseModel):
    """A label: its name, how many variants it has, and what these are called, where they have names."""

    model_config = STRICT

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    variants: Annotated[int, Field(ge=1, le=10**6)]
    names: list[Annotated[str, Field(max_length=1000)]] = []

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if self.names and len(self.names) != self.variants:
            raise ValueError("names are not one for each variant")
        return self

    @classmethod
    def of(cls, schema: Iterable[Attribute]) -> list[dict[str, Any]]:
        """A schema as JSON."""
        return [
            {"name": a.name, "variants": a.variants, **({"names": list(a.names)} if a.names else {})}
            for a in schema
        ]

    @property
    def attribute(self) -> Attribute:
        """The label as the schema has it."""
        return Attribute(self.name, self.variants, tuple(self.names))


class DataRecord(BaseModel):
    """What a run keeps of its shards (``data_record``), in run.json, checkpoints and exports."""

    model_config = STRICT

    fingerprint: Annotated[str, Field(min_length=1, max_length=128)]
    size: Annotated[int, Field(ge=1, le=2**16)]
    attributes: Annotated[list[AttributeRecord], Field(alias="schema", max_length=10_000)]


class RunRecord(BaseModel):
    """run.json: which experiment the folder is of."""

    model_config = STRICT

    identity: dict[str, Any]
    data: DataRecord


@functools.cache  # the code that was loaded, not what the checkout became since
def code_version() -> str:
    """The code's commit, with "+" if tracked files differ from it; "diffcore VERSION" outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    if (REPOSITORY / f"diffcore-{VERSION}.dist-info").is_dir():  # installed: other files there are not ours
        return f"diffcore {VERSION}"
    snapshot = REPOSITORY / "VERSION"  # a launcher's copy of the code says what it was copied from
    if snapshot.is_file():
        return snapshot.read_text(encoding="utf-8").strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return f"diffcore {VERSION}"


def run_of(path: Path) -> Path:
    """The run folder that a checkpoint lies in; any other path is its own."""
    within = path.absolute().parents
    return within[1] if len(within) > 1 and is_there(path / "state.json") else path


def data_record(index: Index) -> dict[str, Any]:
    """What a run keeps of its shards: enough to tell them apart, and to draw without them."""
    schema = AttributeRecord.of(index.schema)
    return {"fingerprint": index.fingerprint, "size": index.size, "schema": schema}


def settled(config: Config) -> Config:
    """``config`` with what it leaves open as the run in its folder has it: draws and order.

    Of a new run the draws are the newest, and an order ``auto`` stays: the data decide. InputError if the
    folder's record cannot be read.
    """
    before = _record(config)
    if before is not None:
        identity = FIRST | before.identity
        draws, order = identity[DRAWS] or FIRST[DRAWS], identity[ORDER]
        if order not in get_args(OrderName):
            allowed = ", ".join(get_args(OrderName))
            raise InputError(f"{config.run}: its order is {order!r:.40}; allowed: {allowed}")
    else:
        draws, order = NEWEST_DRAWS, config.data.order
    if config.diffusion.draws is None:
        config = replace(config, "diffusion", {"draws": draws})
    return replace(config, "data", {"order": order}) if config.data.order == "auto" else config


def check(config: Config, data: dict[str, Any]) -> None:
    """InputError, with both values, if the run folder belongs to another experiment.

    ``data`` says which shards: their fingerprint among others. A folder without a run is fine.
    """
    before = _record(config)
    if before is None:
        if any(not _begun(name) for name in names_in(config.run)):
            raise InputError(f"run: {config.run} is not empty and is no run folder; give another one")
        return
    fingerprint = before.data.fingerprint
    now = settled(config).identity()
    # A setting that is younger than the folder was at its default, or at what was its default then.
    identity = {key: config.usual(key) for key in now} | FIRST | before.identity
    differing = [key for key in {**identity, **now} if identity.get(key) != now.get(key)]
    if differing:
        pairs = ", ".join(f"{key} was {identity.get(key)!r}, now {now.get(key)!r}" for key in differing)
        raise InputError(f"run: {config.run} holds another experiment ({pairs}); give another run folder")
    if fingerprint != data["fingerprint"]:
        raise InputError(
            f"run: {config.run} was trained on other shards (index {fingerprint[:12]}, "
            f"{config.data.path} has {data['fingerprint'][:12]}); give another run folder or the old shards"
        )


def _record(config: Config) -> RunRecord | None:
    """What the run folder says of its run, if there is one."""
    record = config.run / "run.json"
    if not is_there(record):
        return None
    return validated(RunRecord, json_file.read(record), f"{record}: not a run's record")


def _begun(name: str) -> bool:
    """Whether a file of that name is there before there is a run."""
    return name in EARLY or name.startswith((LOCK, RENDEZVOUS))


def claim(config: Config, data: dict[str, Any]) -> Lock:
    """Make the folder this process's, and write the record and the resolved config.

    The returned lock holds the claim until it is closed or the process ends. InputError if another process
    has it: the same command started twice, or a job that was requeued before its first life ended; if the
    folder is one that others could change; and as ``check``, since whoever had it may have begun a run.
    """
    group = config.trust == "group"
    check_entries(own_folder(config.run, group=group, shown=config.run_access == "group"), group=group)
    lock = Lock(config.run / LOCK, shared=True)
    try:
        _take(lock, config.run)
        check(config, data)
        if config.run_access is not None:
            set_access(config.run, config.run_access)
        _write(config, data)
    except BaseException:
        lock.close()
        raise
    return lock


def _take(lock: Lock, run: Path) -> None:
    # A launcher's next attempt may begin while the last one is still being ended.
    until = time.monotonic() + (OVERLAP if ledger.attempt() else 0)
    while not lock.take():
        if time.monotonic() > until and not lock.may_end():
            raise InputError(f"run: another process is training in {run}{lock.holder()}")
        time.sleep(0.2)


def _write(config: Config, data: dict[str, Any]) -> None:
    """The record of a new run, and the resolved config."""
    config = settled(config)
    if not is_there(config.run / "run.json"):
        tree = {"version": 1, "identity": config.identity(), "data": data, "code": code_version()}
        write_json(config.run / "run.json", tree)
    text = config.to_yaml()
    with open_atomic(config.run / "config.yaml") as file:
        if is_shown(config.run):
            os.fchmod(file.fileno(), settings_mode(text))
        file.write(text.encode())


def access(run: Path) -> Access:
    """Who may read a run folder, as it was chosen; private where there is none yet."""
    return "group" if is_there(run) and is_shown(run) else "private"


def set_access(run: Path, chosen: Access) -> None:
    """Let the folder's group read the run, or nobody but its owner: what is there, and what will be made.

    InputError where the folder's group is none of this user's. See docs/security.md.
    """
    if access(run) == chosen:
        if chosen == "private":
            run.chmod(0o700)
        return
    _set_run(run, chosen)
    if chosen == "group" and (above := closed_above(run)):
        name = group_name(run.stat().st_gid)
        line = f"run_access: group: the group {name} does not get through {above} (chmod g+x, or o+x)"
        print(one_line(f"warning: {line}"), file=sys.stderr)


def _set_run(run: Path, chosen: Access) -> None:
    if chosen == "private":
        run.chmod(0o700)  # the first thing
    for path in run.iterdir():
        if path.name == "job":
            for place in (path, *path.glob("[0-9]*")):
                _set_mode(place, chosen)
            for kind in JOB_TEXTS:
                for text in path.glob(f"[0-9]*/{kind}"):
                    _set_mode(text, "private" if text.name == "sweep.txt" and _is_secret(text) else chosen)
        elif path.name == "config.yaml":
            _set_mode(path, "private" if _is_secret(path) else chosen)
        else:
            _set_plain(path, chosen)
    if chosen == "group":
        show(run)


def _set_plain(path: Path, chosen: Access) -> None:
    """What is for people, and all below it, but for locks and the like; a run there (a sweep's) as a run."""
    if path.name.startswith("."):
        return
    if path.is_symlink() or not path.is_dir():
        _set_mode(path, chosen)
    elif path.stat().st_uid != os.geteuid() and not os.access(path, os.R_OK | os.X_OK):
        return
    elif any(is_there(path / name) for name in ("job", "run.json")):
        if path.stat().st_uid == os.geteuid():
            _set_run(path, chosen)
    else:
        _set_mode(path, chosen)
        for one in path.iterdir():
            _set_plain(one, chosen)


def _set_mode(path: Path, chosen: Access) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
        return
    if stat.S_ISDIR(status.st_mode):
        if chosen == "group":
            show(path)
        else:
            path.chmod(0o700)
    elif stat.S_ISREG(status.st_mode):
        path.chmod(SHARED if chosen == "group" else PRIVATE)


def _is_secret(path: Path) -> bool:
    return settings_mode(path.read_text(errors="replace")) == PRIVATE


def settings_mode(text: str) -> int:
    """Mode of a config that a group may read, but for one with credentials, as of a URL."""
    return SHARED if without_url_secrets(text) == text == without_credentials(text) else PRIVATE

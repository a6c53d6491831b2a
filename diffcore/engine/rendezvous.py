"""How the ranks of a run find each other, and know each other.

torch's store, through which ranks meet, asks nobody who he is: another user of the machine, or of the
network, could join as one of the ranks. So

1. rank 0 listens on the address that the others are told (MASTER_ADDR) alone, on one node on loopback;
2. it writes a new secret into the run folder, in a file that only its owner reads and that is gone when all
   are there; each rank proves by an HMAC that it has read it, and rank 0 that it has seen them all, before
   training begins; what ranks leave in the store afterwards has names that follow from the secret;
3. what ranks exchange is tensors and JSON (``ranks.gather``), never pickles, which could run code.

What this does not do: hide or sign the tensors themselves. On a network that is not trusted the figures of
a run can be read and changed; see docs/security.md.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch.distributed as dist

# Its functions keep the group that there is when it is first imported, as a default. Imported after ``join``,
# as torch itself does, it would keep gloo's threads until the interpreter ends, where a late one aborts all.
import torch.distributed.nn.functional  # noqa: F401
from torch.distributed import DistNetworkError, HashStore, PrefixStore, Store, TCPStore

from diffbase.cli import InputError
from diffbase.files import renamed
from diffbase.machine import launcher, open_files
from diffbase.machine.ports import RENDEZVOUS, is_free
from diffbase.trust import own_folder
from diffcore.engine.ranks import StrangerError

LIMIT = datetime.timedelta(minutes=30)
"""How long a rank waits for the others, as torch does; ``guards.start_seconds`` may end it before."""
SPARE = 512
"""Open files of rank 0 beside its store's connections: shards, libraries, a backend's own."""
OFFERED = range(29501, 30000)
"""Ports of which a free one is proposed: beside the launchers' own default."""
SHARED = 120.0
"""Seconds within which a network disk shows what another node has written."""


class TakenPortError(RuntimeError):
    """Somebody else listens where the ranks were told to meet."""


def join(
    backend: str,
    folder: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    group: bool = False,
    shown: bool = False,
) -> Store | None:
    """Make torch's process group, as the launcher's environment says. A collective.

    Returns the store in which the ranks met, under names that strangers cannot guess; None for one rank.
    ``folder``: one that all ranks see, made when all are here; ``group`` and ``shown`` as of
    ``trust.own_folder``. Raises StrangerError if somebody else is among them, or a rank does not see the
    folder; torch.distributed.DistError if they do not find each other; TakenPortError; InputError where rank
    0 may not open as many files as there are ranks.
    """
    rank, size, _ = launcher.place(environ)
    if size == 1:  # nobody to meet: no port
        _stay_at_home()
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return None
    address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    here = launcher.ranks_here(environ) == size
    if _is_loopback(address):
        here = True
        _stay_at_home()
    agents = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's store, which listens already
    if rank == 0 and not agents:
        _room_for(size)
    store = _store(address, port, rank == 0 and not agents, here)
    attempt = f"diffcore/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    own = partial(own_folder, group=group, shown=shown)
    secret = _prove(PrefixStore(attempt, store), folder / f"{RENDEZVOUS}{port}", rank, size, own)
    hidden = PrefixStore(_mac(secret, "names"), store)
    dist.init_process_group(backend, store=hidden, rank=rank, world_size=size)
    return PrefixStore("beside", hidden)


def _room_for(size: int) -> None:
    """Rank 0's store has a connection to every rank: as many open files as that takes, or InputError."""
    allowed = open_files.allow(size + SPARE)
    if allowed < size + SPARE // 4:
        raise InputError(
            f"open files: rank 0 of {size} needs {size + SPARE}; allowed here are {allowed} (ulimit -Hn)"
        )


def _prove(store: Store, path: Path, rank: int, size: int, own: Callable[[Path], Path]) -> bytes:
    """Exchange proofs of the attempt's secret; returns the secret."""
    if rank:
        store.set(f"here/{rank}", "")
        secret = _read(path, store.get("token").decode(errors="replace"))
        store.set(f"proof/{rank}", _mac(secret, f"rank {rank} of {size}"))
        if not _same(store.get("all"), _mac(secret, f"all {size}")):
            raise StrangerError("rank 0 is not this run's: it does not know the attempt's secret")
        return secret
    store.multi_get([f"here/{other}" for other in range(1, size)])  # a start that fails leaves no folder
    own(path.parent)
    secret, token = secrets.token_bytes(32), secrets.token_hex(16)
    _write(path, {"token": token, "secret": secret.hex()})
    try:
        store.set("token", token)
        proofs = store.multi_get([f"proof/{other}" for other in range(1, size)])
    finally:
        path.unlink(missing_ok=True)
    for other, proof in enumerate(proofs, start=1):
        if not _same(proof, _mac(secret, f"rank {other} of {size}")):
            raise StrangerError(f"rank {other} is not this run's: it does not know the attempt's secret")
    store.set("all", _mac(secret, f"all {size}"))
    return secret


def _mac(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def _same(given: bytes, wanted: str) -> bool:
    return hmac.compare_digest(given, wanted.encode())


def _write(path: Path, tree: Mapping[str, str]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with renamed(path) as temporary, os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        json.dump(tree, file)


def _read(path: Path, token: str) -> bytes:
    """The secret that stands beside ``token``; waits for it, as a network disk may show it late."""
    until = time.monotonic() + SHARED
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                status = os.fstat(file.fileno())
                tree = json.loads(file.read(1000))
            if status.st_uid == os.geteuid() and not status.st_mode & 0o077 and tree["token"] == token:
                return bytes.fromhex(tree["secret"])
        if time.monotonic() > until:
            raise StrangerError(
                f"{path}: rank 0's secret is not there after {SHARED:.0f} s: does this node see the same run "
                "folder, as the same user?"
            )
        time.sleep(0.05)


def _stay_at_home() -> None:
    """What one machine's processes listen on for each other is loopback, unless somebody chose otherwise."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")


def _store(address: str, port: int, master: bool, here: bool) -> Store:
    listening = _listen(address, port, here) if master else None
    return TCPStore(
        address,
        port,
        is_master=master,
        timeout=LIMIT,
        wait_for_workers=False,
        master_listen_fd=None if listening is None else listening.detach(),
    )


def _listen(address: str, port: int, here: bool) -> socket.socket | None:
    """A socket at the address that the others were told; None where that is not this machine's to bind."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        if not here and _is_loopback(str(where[0])):
            return None  # a node's own name may lead to loopback there (/etc/hosts), but not for the others
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(2048)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:  # an address of a router's, say
            return None
        if error.errno == errno.EADDRINUSE:
            other = next((free for free in OFFERED if is_free(free, str(where[0]))), port + 1)
            raise TakenPortError(
                f"port {port} of {address}, where the ranks are to meet (MASTER_PORT), is taken, by another "
                f"run perhaps: give this one its own, as in deepspeed --master_port {other} ..."
            ) from error
        raise DistNetworkError(f"{address}:{port}: {error.strerror or error}") from error
    return listening


def _is_loopback(address: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return address == "localhost"

"""Whose hands a folder is in: before code or state in it is used, nobody else may be able to change it.

A folder is ours where it belongs to this user or to root and nobody else may write into it, and where nobody
else could put another one in its place: that is in the hands of whoever may write into a folder above it, but
for folders with the sticky bit (/tmp), in which only the owner of an entry renames it. Links on the way count
as entries of the folder that they lie in. docs/security.md says who is trusted with what.

A group's members count as others, unless the group is the user's own (Debian's and Fedora's useradd make
one for each user) or the caller says that the group is trusted.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from pathlib import Path

from diffbase.cli import InputError

MOST_LINKS = 40
"""Links on the way to a folder, as the kernel allows."""
SHOWN = 0o2750
"""Mode of a folder whose group may read it: what is made in it is the group's to read too, and has its group
(the setgid bit). Just this mode says so; any other folder's new files are their owner's alone."""


def is_shown(folder: Path) -> bool:
    """Whether what is made in ``folder`` may be read by its group."""
    return stat.S_IMODE(folder.stat().st_mode) == SHOWN


def file_mode(folder: Path) -> int:
    """Mode of a new file there."""
    return 0o640 if is_shown(folder) else 0o600


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there, for those who may read the one they lie in.

    Whatever the umask.
    """
    if not path.parent.exists():
        make_folder(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    if is_shown(path.parent):
        show(path)


def show(folder: Path) -> None:
    """Let a folder's group read it. InputError where the group is none of this user's, so that it may not."""
    folder.chmod(SHOWN)
    if not is_shown(folder):  # the kernel drops the setgid bit without a word
        name = group_name(folder.stat().st_gid)
        raise InputError(f"{folder}: its group {name} is none of yours; give it one of yours (chgrp)")


def closed_above(folder: Path) -> Path | None:
    """A folder above through which the group of ``folder`` does not get; None where it does."""
    group = folder.stat().st_gid
    for above in folder.resolve().parents:
        status = above.stat()
        wanted = stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH
        if not status.st_mode & wanted:
            return above
    return None


def own_folder(path: Path, *, group: bool = False, code: bool = False, shown: bool = False) -> Path:
    """Make a folder, for its owner alone, or take one that is ours; ``path`` itself. See ``check_folder``.

    Missing folders above it are made the same way; ``shown``: so that their group gets through them. OSError
    where the disk does not allow it.
    """
    check_above(path, group=group, code=code)
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)  # another process of ours may be as far
        if shown:
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o050)
    if missing:  # or somebody else's was
        check_above(path, group=group, code=code)
    _check_itself(path, group)
    return path


def check_folder(path: Path, *, group: bool = False, code: bool = False) -> None:
    """InputError, which names the folder and why, for one that others could change; it has to be there.

    ``group``: members of the groups of these folders are trusted, and the owners of those above. ``code``:
    what lies in the folder is run as this user, so that the owners of the folders above it count too.
    """
    check_above(path, group=group, code=code)
    _check_itself(path, group)


def _check_itself(path: Path, group: bool) -> None:
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: not a folder")
    if status.st_uid not in owners():
        raise InputError(f"{path} belongs to {user_name(status.st_uid)}: allowed is a folder of your own")
    if who := writers(status, group):
        raise InputError(f"{path} can be written by {who}: make it yours alone (chmod go-w {path})")


def check_above(path: Path, *, group: bool = False, code: bool = False) -> None:
    """InputError where others could put another folder in the place of ``path``, which need not be there."""
    links = 0
    done, todo = Path("/"), list(path.absolute().parts[1:])
    _check_above(done, path, group, code)
    while todo:
        part = todo.pop(0)
        if part == "..":
            done = done.parent
            continue
        entry = done / part
        try:
            status = entry.lstat()
        except FileNotFoundError:
            return
        if not group and status.st_uid not in owners() and done.stat().st_mode & stat.S_ISVTX:
            what = f"{path}" if entry == path.absolute() else f"{path}: {entry} on the way there"
            raise InputError(f"{what} belongs to {user_name(status.st_uid)}: allowed is a folder of your own")
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MOST_LINKS:
                raise InputError(f"{path}: too many links on the way")
            target = entry.readlink()
            todo = [*(target.parts[1:] if target.is_absolute() else target.parts), *todo]
            done = Path("/") if target.is_absolute() else done
            continue
        done = entry
        if todo:
            _check_above(done, path, group, code)


def check_entries(folder: Path, *, group: bool = False) -> None:
    """InputError for an entry of ``folder`` that somebody else put there or, a folder too, may write into."""
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        if status.st_uid not in owners() and not group:
            raise InputError(
                f"{path} belongs to {user_name(status.st_uid)}: nobody else's may be in {folder}"
            )
        if stat.S_ISDIR(status.st_mode) and (who := writers(status, group)):
            raise InputError(f"{path} can be written by {who}: make it yours alone (chmod go-w {path})")


def check_file(path: Path) -> None:
    """InputError for a file that somebody else wrote or may write; the folder is ``check_folder``'s."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a plain file")
    if status.st_uid not in owners():
        raise InputError(f"{path} belongs to {user_name(status.st_uid)}: allowed is a file of your own")
    if who := writers(status, group=False):
        raise InputError(f"{path} can be written by {who}")


def writers(status: os.stat_result, group: bool) -> str:
    """Who besides the owner may write there, in words; "" for nobody."""
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    if status.st_mode & stat.S_IWGRP and not group and not _is_private(status.st_gid):
        return f"the group {group_name(status.st_gid)}"
    return ""


@functools.cache
def owners() -> frozenset[int]:
    """The user ids that are trusted: this user's and root's."""
    ours = {0, os.geteuid()}
    # In a user namespace (a container without root) the machine's root has no number of its own.
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        ours.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return frozenset(ours)


def user_name(number: int) -> str:
    """A user's name for messages; the number where there is no entry."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def group_name(number: int) -> str:
    """A group's name for messages."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


@functools.cache
def _is_private(number: int) -> bool:
    """Whether a group has no other member than this user: its first group, named as it is."""
    if number == 0:
        return True  # root's
    try:
        me, mine = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return me.pw_gid == number and mine.gr_name == me.pw_name and set(mine.gr_mem) <= {me.pw_name}


def _check_above(folder: Path, path: Path, group: bool, code: bool) -> None:
    status = folder.stat()
    why = ""
    if code and not group and status.st_uid not in owners():
        why = f"belongs to {user_name(status.st_uid)}"
    elif not status.st_mode & stat.S_ISVTX and (who := writers(status, group)):
        why = f"can be written by {who}"
    if why:
        raise InputError(
            f"{path}: {folder} above it {why}, who could put another folder in its place; "
            "use a folder under your own, or say trust: group in the config if that group is trusted"
        )

"""Making sure that a program of another OS user can reach what it needs, and nothing else."""

import grp
import os
import pwd
import subprocess
from pathlib import Path

from medfusion.errors import UsageError


def refuse_readers(user: str, path: Path) -> None:
    """Refuse to go on if a user can read a file, or list or enter a folder.

    Raises
    ------
    UsageError
        If so, or if there is no such user or this process may not become it.
    """
    entry = _entry(user)
    groups = os.getgrouplist(user, entry.pw_gid)
    try:
        found = subprocess.run(
            ["/usr/bin/test", "-r", str(path), "-o", "-x", str(path)],
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=groups,
            cwd="/",
        )
    except PermissionError:
        raise UsageError(f"--link-user {user}: only root may start a program as another") from None
    if found.returncode == 0:
        raise UsageError(
            f"{path}: user {user!r}, who runs the link, can read it; expected it to be closed to "
            f"others: chmod -R o-rwx {path}"
        )


def own(folder: Path, user: str) -> None:
    """Give a folder to a user."""
    entry = _entry(user)
    os.chown(folder, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def let_through(folder: Path, user: str) -> str:
    """Let a user's group into a folder, but not list it; return the group's name.

    What is made in the folder has that group too, also if its maker is not in it.
    """
    group = _entry(user).pw_gid
    os.chown(folder, -1, group)
    folder.chmod(0o2710)
    return grp.getgrgid(group).gr_name


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise UsageError(f"user {user!r}: no such user on this machine") from None

"""What a check tells: how it went, what was found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """The result of one check; ``remedy`` is empty where there is nothing to do."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """Return a check that went well."""
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    """Return a check that found what will or may become a problem."""
    return Check(name, "warning", found, remedy)


def failed(name: str, found: str, remedy: str) -> Check:
    """Return a check that found why the site does not work."""
    return Check(name, "failed", found, remedy)


def skipped(name: str, found: str) -> Check:
    """Return a check that could not be made."""
    return Check(name, "skipped", found)

"""The JSON files that coordinator and hospitals exchange, and the kinds of values in them."""

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from medfusion.errors import ConfigError
from medfusion.options import Options

DocumentType = TypeVar("DocumentType", bound=Options)

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?!.*\.[0-9]+\Z){_LABEL}(\.{_LABEL})*")
_MAX_PORT = 65535


def split_address(address: str) -> tuple[str, int]:
    """Return host, an IPv6 one without its brackets, and port of ``host:port``.

    Raises
    ------
    ValueError
        If it is no such address.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    if not (_is_ip(name, 6) if bracketed else _is_ip(name, 4) or _HOST_NAME.fullmatch(name)):
        raise ValueError(
            "expected host:port, as fl.example.org:9092, 192.0.2.7:9092 or [2001:db8::7]:9092"
        )
    if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > _MAX_PORT:
        raise ValueError(f"expected a port of 1 to {_MAX_PORT} after the last colon")
    return name, int(port)


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version and "%" not in host
    except ValueError:
        return False


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""The name of a federation or site, which is also that of a folder."""

Address = Annotated[str, AfterValidator(_checked_address)]
Port = Annotated[int, Field(ge=1, le=_MAX_PORT)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+!_-]*$", max_length=64)]
Patience = Annotated[int, Field(ge=1)]
"""Seconds that a site may be silent before the coordinator leaves it out of a round."""


def read_json(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a file and the JSON object that they are.

    Raises
    ------
    ConfigError
        If the file is missing, cannot be read or holds something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):  # also what is not UTF-8
        data = None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object, found something else or a damaged file")
    return content, data


def read_document(cls: type[DocumentType], path: Path) -> DocumentType:
    """Read a JSON file of one class; raises `ConfigError` with the file and what is wrong."""
    return cls.parse(read_json(path)[1], where=str(path))


def document_text(document: Options) -> str:
    """Return what `read_document` turns into an equal document."""
    return json.dumps(document.model_dump(mode="json"), indent=2) + "\n"

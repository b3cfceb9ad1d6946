"""`nodes.json`: the nodes that the coordinator admits, by the names of their sites."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from medfusion.federation.documents import Name, read_document
from medfusion.federation.node_key import PublicNodeKey
from medfusion.options import FileSchema, Options


class AdmittedNode(Options):
    """A node's public key, until when it may take part, and whether it was revoked."""

    public_key: PublicNodeKey
    expires: AwareDatetime
    revoked: bool = False

    def may_take_part(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return not self.revoked and now < self.expires


class NodeList(Options):
    """The whole of ``nodes.json``. No two sites have one key."""

    file_schema: FileSchema = 1
    nodes: Mapping[Name, AdmittedNode] = Field(default={})

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        keys = [node.public_key for node in self.nodes.values()]
        twice = sorted(name for name, node in self.nodes.items() if keys.count(node.public_key) > 1)
        if twice:
            raise ValueError(f"each site has a key of its own, but one is that of {twice}")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the list.

        Raises
        ------
        ConfigError
            If the file is missing or damaged.
        """
        return read_document(cls, path)

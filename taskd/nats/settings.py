"""Where NATS is, and under which subjects events are found there. Does without nats-py."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

__all__ = ["CURSOR", "NatsConfig", "Subjects", "without_credentials"]

CURSOR = "nats"
"""Name of the journal's cursor that says how far the stream is."""


@dataclass(frozen=True, slots=True)
class NatsConfig:
    """``[events.nats]``."""

    servers: tuple[str, ...]
    """URLs, such as ``nats://10.0.0.1:4222``; one of them that answers is enough."""
    stream: str = "TASKD"
    subject: str = "taskd.{node}.{namespace}.{topic}"
    credentials: Path | None = None
    """A file with the JWT and the key of a user, as ``nsc`` makes it."""
    user: str = ""
    password_file: Path | None = None
    tls_ca: Path | None = None
    """Whom to trust instead of those whom the system trusts."""
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def password(self) -> str:
        """Raises OSError for a file that cannot be read."""
        return self.password_file.read_text().strip() if self.password_file else ""

    @property
    def is_secure(self) -> bool:
        """Whether nothing is to be said that is not encrypted."""
        secure = any(server.startswith(("tls://", "wss://")) for server in self.servers)
        return bool(secure or self.tls_ca or self.tls_cert)

    def tls(self) -> ssl.SSLContext | None:
        """Raises OSError (of which `ssl.SSLError` is one) for files that cannot be used."""
        if not self.is_secure:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        return context


def without_credentials(text: str) -> str:
    """`text` without the user and the password of any URL, or of what was to be one, in it."""
    return re.sub(r"(\w+://)?[^\s'\",]*@", r"\1", text)


class Subjects:
    """The subjects that a template stands for.

    No two topics, namespaces or nodes meet in one subject: what may not be in a token, or would
    divide it, is written as in a URL (``%2E`` for a dot).
    """

    def __init__(self, template: str) -> None:
        """Raises ValueError for one that would not tell nodes and topics apart."""
        tokens = template.split(".")
        fields = [token for token in tokens if "{" in token or "}" in token]
        if not set(fields) <= {"{node}", "{namespace}", "{topic}"}:
            raise ValueError(
                f"{template!r}: {{node}}, {{namespace}} and {{topic}} are to be tokens of their own"
            )
        if tokens[-1] != "{topic}" or fields.count("{topic}") > 1:
            raise ValueError(f"{template!r} does not end with {{topic}}, which has several tokens")
        if "{node}" not in fields:
            raise ValueError(f"{template!r} has no {{node}}")
        if not all(re.fullmatch(r"[!-~]+", token) and not {*token} & {*"*>"} for token in tokens):
            raise ValueError(f"{template!r} is not a NATS subject")
        self._template = template

    def of(self, node: str, namespace: str, topic: str) -> str:
        """Subject of an event."""
        parts = ".".join(_token(part) for part in topic.strip("/").split("/"))
        return self._template.format(node=_token(node), namespace=_token(namespace), topic=parts)

    def of_node(self, node: str) -> str:
        """Matches what one node publishes."""
        return self._template.format(node=_token(node), namespace="*", topic=">")

    def all(self) -> str:
        """Matches what all nodes publish."""
        return self._template.format(node="*", namespace="*", topic=">")


def _token(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E") or "%"

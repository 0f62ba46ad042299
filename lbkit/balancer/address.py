"""Where a replica is that is no object of ours: `http://10.0.0.11:8000`, or `unix:/run/web1.sock`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from lbkit.errors import ConfigError

__all__ = ["Address"]

PORTS = {"http": 80, "https": 443}
RULE = "a URL such as http://10.0.0.11:8000 or unix:/run/web1.sock"


@dataclass(frozen=True, slots=True)
class Address:
    scheme: str
    host: str
    port: int
    path: str = ""
    """Of the unix socket; empty for an address on a network."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ConfigError with the rule. A path is refused: requests keep the one that they came with."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path:
                raise ConfigError(f"need {RULE}, got {text!r}")
            return cls("http", "localhost", 80, path)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"need {RULE}, got {text!r}: {error}") from error
        if parts.scheme not in PORTS or not parts.hostname:
            raise ConfigError(f"need {RULE}, got {text!r}")
        if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
            raise ConfigError(f"need {RULE} and no more, got {text!r}")
        return cls(parts.scheme, parts.hostname, port or PORTS[parts.scheme])

"""What can go wrong, and whose fault it is.

    LbkitError
    ├── ConfigError (ValueError)      a value given to us breaks a rule: the message names both
    │   └── TargetError               `lbkit serve` was pointed at something that is no app
    ├── MissingExtra (ImportError)    a library is not installed: the message names the extra
    └── StartupError (RuntimeError)   a replica did not start: the message names the replica
"""

from __future__ import annotations

__all__ = ["ConfigError", "LbkitError", "MissingExtra", "StartupError", "TargetError"]


class LbkitError(Exception):
    """Every error that lbkit raises on purpose."""


class ConfigError(LbkitError, ValueError):
    """A value given by the developer breaks a rule. The message gives the value and the rule."""


class TargetError(ConfigError):
    """A TARGET such as `shop.web:app` cannot be turned into an app."""


class MissingExtra(LbkitError, ImportError):
    """A library that this feature needs is not installed."""

    def __init__(self, library: str, *, extra: str) -> None:
        super().__init__(f"{library} is not installed; it comes with: pip install 'lbkit-web[{extra}]'")
        self.library = library
        self.extra = extra


class StartupError(LbkitError, RuntimeError):
    """A replica did not start."""

    def __init__(self, replica: str, reason: str) -> None:
        super().__init__(f"replica {replica} failed to start: {reason}")
        self.replica = replica
        self.reason = reason

"""`python -m lbkit`, and the command `lbkit`."""

from __future__ import annotations

import sys

from lbkit.errors import MissingExtra

__all__ = ["main"]


def main() -> None:
    try:
        from lbkit.cli import main as commands
    except MissingExtra as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    commands(prog_name="lbkit")


if __name__ == "__main__":
    main()

"""`python -m lbkit`, and the command `lbkit`."""

from __future__ import annotations

import sys

from lbkit import healthcheck
from lbkit.errors import MissingExtra

__all__ = ["main"]


def main() -> None:
    if sys.argv[1:2] == ["probe"]:
        # It runs in images that have no more than the core of lbkit.
        sys.exit(healthcheck.main(sys.argv[2:]))
    try:
        from lbkit.cli import main as commands
    except MissingExtra as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    commands(prog_name="lbkit")


if __name__ == "__main__":
    main()

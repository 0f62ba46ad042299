"""Real programs for tests: found, or the test skips with what to install; under CI it fails instead."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from scripts.programs import PROGRAMS

__all__ = ["program"]


def program(name: str) -> str:
    """The path of `haproxy`, `chromium`, ... from this environment's `bin` or PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if found := PROGRAMS[name].find(path):
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(PROGRAMS[name].advice)
    pytest.skip(PROGRAMS[name].advice)

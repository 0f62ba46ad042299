"""The shop's own suite over three replicas: nothing in the shop, and both mistakes in the wrong one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.serving import ROOT

SUITE = "sample_apps/flask_shop/test_shop.py"


def over_three_replicas(*options: str, shop: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    alone = ["-p", "lbkit.testkit.plugin", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(ROOT)]
    replicas = ["--replicas", "3", "--replica-classify", "no", "--import-mode=importlib"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *alone, *replicas, SUITE, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "SHOP": shop},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_shop_is_clean() -> None:
    told = over_three_replicas(shop="right")
    assert "nothing that 3 tests touch depends on which replica answers" in told, told
    assert "3 passed" in told


def test_the_wrong_shop_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    told = over_three_replicas("--replica-report", str(page), shop="wrong")
    assert "2 of 3 tests depend on which replica answers" in told, told
    assert 'app.config["SECRET_KEY"] differs on web1, web2, web3' in told
    assert "sample_apps.flask_shop.wrong.CARTS (dict, " in told
    assert "2 of 3 tests depend on which replica answers</h1>" in page.read_text("utf-8")

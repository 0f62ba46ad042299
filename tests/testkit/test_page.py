"""The report as a page for people, and as lines for other programs."""

from __future__ import annotations

import re
from pathlib import Path

from lbkit.testkit.annotations import github_lines, junit_properties
from lbkit.testkit.findings import Finding, Oracle, Report, Row, Verdict
from lbkit.testkit.page import render
from tests.e2e.chromium import chromium

EVIL = "</title><script>alert(1)</script>"


def report() -> Report:
    test = "tests/test_cart.py::test_add_then_view"
    rows = [
        Row(test, "web2", "POST", "/cart", 201, 0.2, 0.004),
        Row(test, "web3", "GET", "/cart", 200, 0.3, 0.002),
        Row("tests/test_other.py::test_page", "web1", "GET", f"/{EVIL}", 500, 0.1, 0.03),
    ]
    found = Report(
        replicas=3, isolation="module", policy="round_robin", apps={"shop:app": "module"}, tests=2, rows=rows
    )
    found.findings = [
        Finding(oracle=Oracle.ASSERTION, what=test, remedy="a Redis session", verdict=Verdict.CLIENT),
        Finding(oracle=Oracle.ASSERTION, what="tests/t.py::white", remedy="", verdict=Verdict.HARNESS),
        Finding(
            oracle=Oracle.STATE,
            what="shop.CARTS (dict, 0 → 1)",
            where="shop/cart.py:12",
            remedy=f"Redis: {EVIL}",
        ),
    ]
    return found


def test_what_comes_from_the_app_cannot_break_out_of_the_page() -> None:
    page = render(report(), headline=EVIL)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_the_page_loads_nothing() -> None:
    page = render(report(), headline="1 of 2")
    assert not re.search(r"https?://|src=|href=|url\(|@import|javascript:|\son\w+=|style=", page)


def test_a_test_is_a_column_for_each_request_and_a_line_for_each_replica() -> None:
    page = render(report(), headline="1 of 2")
    lanes = page.split('<table class="lanes">')[1].split("</table>")[0]
    lines = lanes.split("<tr>")[1:]
    assert [re.findall("web[0-9]", line)[0] for line in lines] == ["web2", "web3"]
    assert [line.count("<td>") for line in lines] == [2, 2]
    assert ["POST /cart 201" in line for line in lines] == [True, False]


def test_a_browser_has_nothing_to_complain_about(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(report(), headline="1 of 2 tests depends on which replica answers"), "utf-8")
    with chromium(tmp_path / "profile") as tab:
        for width, dark in ((390, False), (1000, True)):
            tab.open(file.as_uri(), width=width, dark=dark)
            assert tab.told("Log.entryAdded", "Runtime.exceptionThrown") == []
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert tab.evaluate("getComputedStyle(document.querySelector('.card')).borderRadius") == "10px"
        assert tab.evaluate("document.querySelectorAll('svg .hit').length") == 3
        assert tab.evaluate("document.querySelectorAll('svg .hit.bad').length") == 1


def test_a_report_is_told_to_junit_and_to_github() -> None:
    properties = junit_properties(report())
    assert properties["lbkit.replicas"] == "3"
    assert properties["lbkit.found.assertion"] == "2"
    lines = github_lines(report())
    assert len(lines) == 2  # an undecided test is no warning
    assert lines[1].startswith("::warning file=shop/cart.py,line=12,title=lbkit%3A state::shop.CARTS")

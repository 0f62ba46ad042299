"""Differential GET: the same question to every replica, and who answers differently.

A page that one replica answers differently twice in a row, such as one with the time of day, says nothing.
Only a GET that was answered with 2xx and may be stored is asked again; one that changes something suffers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbkit.testkit.findings import Finding, Oracle, Report
from lbkit.testkit.oracles.asking import Answer
from lbkit.testkit.turn import Served, Watcher

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit

__all__ = ["DifferentialGet"]

REMEDY = "see what was written before: it belongs where all replicas see it, or clients must be sticky"


class DifferentialGet(Watcher):
    """Compares what each replica answers to a GET."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.asked = 0
        self.volatile = 0
        self.found: dict[str, Finding] = {}

    def compare(self, served: Served, answers: dict[str, Answer], again: Answer) -> None:
        """Each replica's answer, the one that served first; `again` is what that one said in the end."""
        self.asked += 1
        (first, mine), *others = answers.items()
        if again != mine:
            self.volatile += 1
            return
        differs = [f"{name} ({told(answer)})" for name, answer in others if answer != mine]
        if differs and served.path not in self.found and not self.kit.allows(served.path, served.turn):
            self.found[served.path] = Finding(
                oracle=Oracle.DIFFERENCE,
                what=f"GET {served.path} is answered differently by {len(answers)} replicas",
                requests=(f"{first} ({told(mine)})", *differs),
                tests=(served.turn.test,),
                remedy=REMEDY,
            )

    def report(self, report: Report) -> None:
        report.findings += self.found.values()
        report.compared, report.volatile = self.asked, self.volatile


def told(answer: Answer) -> str:
    status, body = answer
    return f"{status}, {len(body)} bytes"

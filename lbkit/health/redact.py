"""Takes secrets out of the text of an exception before anybody reads it.

The text of a driver's error is written for a log on the same machine; a health answer is not that. The rules
would rather hide too much: what is left is one line, long enough to tell a wrong host from a wrong password.
"""

from __future__ import annotations

import re

__all__ = ["redact"]

LONGEST = 200
HIDDEN = "[redacted]"
# A text longer than this is cut first: the rules below must not take long on a megabyte of it.
LONGEST_READ = 2000

WORDS = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|api[_\- ]?key|access[_\- ]?key(?:[_\- ]?id)?|private[_\- ]?key"
    r"|auth(?:orization)?|credentials?|cookie|session(?:[_\- ]?id)?|signature|sig|bearer|dsn"
)
RULES = (
    # scheme://user:password@host: the password may hold anything but a space, an @ too.
    (re.compile(r"\b([a-z][a-z0-9+.\-]*://)[^\s/@]*:?[^\s]*@", re.I), rf"\1{HIDDEN}@"),
    # The same with a space in the password. This may eat some text between two addresses, and that is fine.
    (re.compile(r"\b([a-z][a-z0-9+.\-]*://)[^\s/@:]*:[^@]{0,100}@", re.I), rf"\1{HIDDEN}@"),
    # PEM blocks, whole or cut.
    (re.compile(r"-----BEGIN[^-]*-----.*?(?:-----END[^-]*-----|$)", re.S), HIDDEN),
    # A query string may carry anything.
    (re.compile(r"\?[^\s\"'<>]*"), f"?{HIDDEN}"),
    # password=..., "token": "...", Authorization: Basic ...
    (
        re.compile(
            rf"([\w\-]*(?:{WORDS})[\w\-]*[\"']?)(\s*(?:[=:]+>?|\bis\b|\bwas\b)\s*)"
            r"(?:(?:bearer|basic|digest|token)\s+)?(\"[^\"]*\"?|'[^']*'?|\S+)",
            re.I,
        ),
        rf"\1\2{HIDDEN}",
    ),
    # password hunter2: without a sign between them, a word with a digit in it.
    (re.compile(rf"([\w\-]*(?:{WORDS}))\s+(?=\S*\d)\S{{4,}}", re.I), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(bearer|basic|digest)\s+\S{6,}", re.I), rf"\1 {HIDDEN}"),
    # JSON web tokens; AWS, GitHub, Slack, Stripe, Google and GitLab keys, by their first letters.
    (re.compile(r"\beyJ[\w\-]+(?:\.[\w\-]*){0,4}"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"), HIDDEN),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|xox[abprs]-|[sr]k_(?:live|test)_|AIza|glpat-)[\w\-]+"), HIDDEN),
    # A long run without a space that mixes letters and digits is a key far more often than a word.
    (
        re.compile(
            r"(?<![\w.\-])(?=[A-Za-z0-9+/_\-]*\d)(?=[A-Za-z0-9+/_\-]*[A-Za-z])[A-Za-z0-9+/_\-]{24,}={0,2}"
        ),
        HIDDEN,
    ),
    # Absolute paths, of Unix and of Windows, and UNC names.
    (re.compile(r"(?<![\w:/.])(?:/[\w.@%+\-~]+)+/?"), "[path]"),
    (re.compile(r"\b[a-z]:[\\/][^\s\"']*|\\\\[^\s\"']+", re.I), "[path]"),
)


def redact(text: str) -> str:
    """One line of at most 200 characters without what looks like a secret."""
    text = text[:LONGEST_READ]
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"

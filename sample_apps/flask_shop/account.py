"""The accounts: one, for the demo, kept as a real shop would keep it: as a salted hash."""

from __future__ import annotations

from werkzeug.security import check_password_hash

__all__ = ["DEMO_NAME", "DEMO_PASSWORD", "authenticate"]

DEMO_NAME = "demo"
DEMO_PASSWORD = "tea-for-three"  # printed on the login page; the hash below is what is compared

# python -c "from werkzeug.security import generate_password_hash as h; print(h('tea-for-three'))"
HASHES = {
    DEMO_NAME: (
        "scrypt:32768:8:1$CcepeqpvHXpyZTDp$"
        "ee511043e6347af8a487718b9e66b8f378d5a7fcedb2b261240b043b51674a5a"
        "6f5ed58b330a4cdba5fae7c543acb81dea7b16cbf93c417c2eba0046f8b9251d"
    ),
}


def authenticate(name: str, password: str) -> bool:
    # An unknown name costs as much time as a wrong password, so the clock tells nobody which it was.
    known = check_password_hash(HASHES.get(name, HASHES[DEMO_NAME]), password)
    return known and name in HASHES

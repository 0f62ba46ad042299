"""What a visitor has said so far, in Flask's signed cookie."""

from flask import session


def begin(name):
    session["name"] = name


def add(item):
    session["items"] = [*session.get("items", []), item]
    return session["items"]


def items():
    return session.get("items", [])

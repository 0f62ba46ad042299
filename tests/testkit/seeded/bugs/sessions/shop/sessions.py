"""What a visitor has said so far, in a dict of this process."""

import uuid

from flask import session

STORE = {}


def mine():
    if "id" not in session:
        session["id"] = uuid.uuid4().hex
    return STORE.setdefault(session["id"], {"items": []})


def begin(name):
    mine()["name"] = name


def add(item):
    mine()["items"].append(item)
    return mine()["items"]


def items():
    return mine()["items"]

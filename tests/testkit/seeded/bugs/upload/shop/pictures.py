from pathlib import Path

from flask import current_app


def save(name, data):
    Path(current_app.config["UPLOADS"], name).write_bytes(data)


def load(name):
    return Path(current_app.config["UPLOADS"], name).read_bytes()

import os


def secret_key(_app):
    return os.urandom(16)

FAILS = {}


def failed(name):
    FAILS[name] = FAILS.get(name, 0) + 1


def locked(name):
    return FAILS.get(name, 0) >= 3

from shop import database


def failed(name):
    database.count("failure", name)


def locked(name):
    row = database.get().execute("SELECT count FROM failure WHERE name = ?", [name]).fetchone()
    return row is not None and row[0] >= 3

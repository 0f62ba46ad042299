from shop import database


def save(name, data):
    database.get().execute("INSERT INTO picture VALUES (?, ?)", [name, data])
    database.get().commit()


def load(name):
    return database.get().execute("SELECT data FROM picture WHERE name = ?", [name]).fetchone()[0]

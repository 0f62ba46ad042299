from shop import database

CACHE = {}


def of(name):
    if name not in CACHE:
        row = database.get().execute("SELECT body FROM page WHERE name = ?", [name]).fetchone()
        if row is None:
            return "no such page", 404
        CACHE[name] = row[0]
    return CACHE[name]

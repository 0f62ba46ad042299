from shop import database


def of(name):
    row = database.get().execute("SELECT body FROM page WHERE name = ?", [name]).fetchone()
    return row[0] if row else ("no such page", 404)

from shop import database

MOST = 30


def exceeded(client):
    return database.count("hit", client) > MOST

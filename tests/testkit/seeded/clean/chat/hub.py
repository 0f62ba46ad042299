"""What is said goes through a table that each replica looks at."""

import asyncio
import os
import sqlite3


def connect():
    database = sqlite3.connect(os.environ["CHAT_DATABASE"], isolation_level=None)
    database.execute("CREATE TABLE IF NOT EXISTS said (id INTEGER PRIMARY KEY, text TEXT)")
    return database


async def serve(websocket):
    database = connect()
    last = database.execute("SELECT coalesce(max(id), 0) FROM said").fetchone()[0]
    await websocket.accept()

    async def listen():
        async for text in websocket.iter_text():
            database.execute("INSERT INTO said (text) VALUES (?)", [text])

    listening = asyncio.create_task(listen())
    try:
        while not listening.done():
            for number, text in database.execute("SELECT id, text FROM said WHERE id > ?", [last]).fetchall():
                last = number
                await websocket.send_text(text)
            await asyncio.wait({listening}, timeout=0.01)
    finally:
        database.close()

"""A notes API over SQLite, with a page that uses it."""

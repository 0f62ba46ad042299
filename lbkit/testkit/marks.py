"""What the test kit puts into a scope or an environ, and takes out again before an app sees it."""

__all__ = ["CLIENT", "MARKS", "PIN", "ROW", "WATCH"]

ROW, WATCH, CLIENT, PIN = MARKS = ("lbkit.row", "lbkit.watch", "lbkit.client", "lbkit.pin")

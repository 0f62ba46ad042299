"""Sessions that no replica, no race and no outage can lose."""

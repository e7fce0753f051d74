"""Turning what a caller presents into a `Caller`."""

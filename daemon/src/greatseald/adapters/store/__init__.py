"""Stores of the audit log: SQLite (the embedded default) and PostgreSQL (several fronts)."""

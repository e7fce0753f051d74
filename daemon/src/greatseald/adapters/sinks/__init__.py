"""Sinks by URL scheme: file, syslog over TCP or TLS, HTTP."""

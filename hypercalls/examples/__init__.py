"""Worked examples of handlers."""

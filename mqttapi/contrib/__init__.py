"""Bridges from and to others."""

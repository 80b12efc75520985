"""Contracts as tests, for parts of one's own: a pytest class derives from one and says how its part is made."""

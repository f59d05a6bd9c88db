"""Preference optimisation with a temperature for every pair."""

__version__ = "0.1.0"

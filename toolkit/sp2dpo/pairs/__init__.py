"""Define preference pairs, parse their formats, and read and sample them from sources."""

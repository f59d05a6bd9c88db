"""A preference pair: what it is, the formats it is written in, and where it is read from."""

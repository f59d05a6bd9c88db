"""Compute one beta per pair from the teachers' replies, under a schedule or an arm."""

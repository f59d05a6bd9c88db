"""A student's outputs, a judge's verdicts, and win rates."""

"""Generate the outputs of a student, collect a judge's verdicts, and compute win rates."""

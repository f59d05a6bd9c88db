"""Show the state and the results of a run: status, pilot, HTML report and plots."""

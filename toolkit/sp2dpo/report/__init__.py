"""What a person is shown of a run: status, pilot, HTML report, plots."""

"""Check replies and betas: agreement, audits, comparisons and known labels."""

"""Whether replies and betas can be trusted: agreement, audits, comparisons, known truth."""

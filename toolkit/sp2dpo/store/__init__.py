"""Store the pairs, questions and replies of an annotation run in one SQLite file."""

"""One SQLite file with the pairs, the questions and the replies of an annotation run."""

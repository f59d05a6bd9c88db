"""What is asked of which teachers: the rubric, the panel, and what counts as an answer."""

"""What became of jobs, what is still to be done, and what it will cost."""

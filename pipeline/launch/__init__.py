"""Getting trials to run: their state on disk, submissions, Slurm, this machine, and what a job does first and last."""

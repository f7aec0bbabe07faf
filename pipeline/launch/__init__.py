"""Getting trials to run: submissions and their manifests, Slurm, this machine, and what a job does first and last."""

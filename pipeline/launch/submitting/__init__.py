"""Bringing work to Slurm or to this machine, again after a failure, and taking it back."""

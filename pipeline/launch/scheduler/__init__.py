"""What Slurm says: its queue, its accounting, its nodes and limits."""

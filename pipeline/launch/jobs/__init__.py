"""What a job runs first and last."""

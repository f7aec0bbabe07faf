"""What a submission is on disk: its trials, how they are shared out to jobs, and the code they run."""

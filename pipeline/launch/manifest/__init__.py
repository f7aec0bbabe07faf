"""What a submission is on disk: its trials, how they are dealt to jobs, and the code they run."""

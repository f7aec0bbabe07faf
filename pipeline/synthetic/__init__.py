"""Generated data in the schemas of the real tasks, with a signal that can be learned and a shift that hurts."""

"""What comes before a first experiment: a YAML drafted from a table that nobody has described, and job scripts to edit."""

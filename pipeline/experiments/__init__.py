"""From a YAML to trials: parents, overrides, grids, names, cluster profiles, errors in words."""

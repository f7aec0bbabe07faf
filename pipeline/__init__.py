"""Carabid: fine-tunes vision foundation models on ecological images, on a Slurm cluster or on one machine."""

__version__ = "0.1.0"

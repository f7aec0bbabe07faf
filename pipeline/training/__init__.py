"""Fitting a model to cached features: samples, augmentation, optimiser, checkpoint, the loop, and the closed-form fit."""

"""Experiment configuration: the pydantic models of a YAML, a module per block; `trial.Config` is the whole.

What a trained model depends on (data, backbone, features, model, training, seed) is science and is hashed (`identity`);
`resources`, `launch`, `paths` and `device` say where and with what a job runs and are not, nor is `evaluate`: the same model can
be evaluated again in another way. Reading YAML, overrides and grids is in `experiments/`. This package loads no torch.
"""

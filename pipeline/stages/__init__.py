"""The stages: extract, train, evaluate, collect. Each is a module whose `run(config, …)` jobs call (`extract.ensure` too:
one job works, others wait). Beside them fetching and predicting, which no job does, and what stages start from (`inputs`).

A stage reads files and writes files atomically and never calls another one; running it again finishes what is missing.
"""

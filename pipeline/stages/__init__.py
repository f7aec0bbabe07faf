"""The stages: extract, train, evaluate, collect. Each is a module with `run(config, …)`, and jobs call nothing else.

A stage reads files and writes files atomically and never calls another one; running it again finishes what is missing.
"""

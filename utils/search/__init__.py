"""Searching hyperparameters: study files, and studies in Optuna's database.

A trial is one run of a training script; all that must be known to go on stands in the database.
"""

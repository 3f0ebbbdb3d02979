"""Searching hyperparameters: study files, one trial as a process, the study in Optuna, its report.

A trial is one run of a training script; all that must be known to go on stands in the database.
"""

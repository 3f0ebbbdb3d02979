"""Searching hyperparameters: study files, one trial as a process, the study in Optuna, its report.

A study tries values of a training script's flags. A trial is one run of that script; what belongs
together, and all that must be known to go on, stands in the study's database.
"""

"""Scores of predictions against the truth, their statistics and tables; nothing is drawn here."""

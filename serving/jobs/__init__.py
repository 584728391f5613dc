"""Prediction jobs: kept in SQLite, run in line with the calls, followed and ended by callers."""

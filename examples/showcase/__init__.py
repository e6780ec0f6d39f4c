"""Runs the example models behind a real server and compares every answer with the model run directly."""

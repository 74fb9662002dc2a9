"""Experiment trackers that follow a run: opt-in plugins that never write the results."""

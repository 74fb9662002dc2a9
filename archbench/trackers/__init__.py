"""Experiment trackers: opt-in plugins that follow a run and never write its results.

``archbench run gpt1 --track tensorboard``. What one is: :class:`archbench.trackers.tracker.Tracker`; how to use and to
write one: ``docs/how-to/trackers.md``. Training writes each step to a file of the run's folder (``feed``); each tracker
runs in a child process that reads it (``session``), and the run starts and finishes them (``following``).
"""

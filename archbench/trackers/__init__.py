"""Experiment trackers that follow a run: opt-in plugins that never write the results.

``archbench run gpt1 --track tensorboard``. What one is: :class:`archbench.trackers.tracker.Tracker`; how to use and to
write one: ``docs/trackers.md``.
"""

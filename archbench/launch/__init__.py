"""Launchers take the cells of a study to processes, machines and clusters, and learn what becomes of them.

What one is: :mod:`archbench.launch.launcher`; how to use one: ``docs/how-to/cluster.md``.
"""

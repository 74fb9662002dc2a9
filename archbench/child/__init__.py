"""Child processes: with a time limit, errors raised in the parent, and nothing left running.

``process`` is the parent's side (:class:`~archbench.child.process.Child`), ``entry`` the child's, and ``pool`` calls a
function for many items in several children at once. ``own_time`` is a clock for limits on a busy machine.
"""

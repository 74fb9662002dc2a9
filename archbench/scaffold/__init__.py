"""What ``archbench new`` writes: an installable package around one module, from templates.

The folder ``my-arch`` is what ``archbench new my-arch`` writes; with ``--wrap`` its module is a file of ``wraps``.
"""

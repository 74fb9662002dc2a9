"""What ``archbench new`` writes: an installable package around one module, from the template beside this file.

The folder ``my-arch`` is, word for word, what ``archbench new my-arch`` writes.
"""

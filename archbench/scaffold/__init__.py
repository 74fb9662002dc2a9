"""What ``archbench new`` writes: an installable package around one module, from a template.

The template is the folder ``my-arch``: exactly what ``archbench new my-arch`` writes.
"""

"""What a device is shown to compute, and how fast: ``archbench doctor --device cuda --prove FOLDER``."""

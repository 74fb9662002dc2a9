"""A model in the files that other tools read."""

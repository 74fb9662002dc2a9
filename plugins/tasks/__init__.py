"""The built-in diagnostic tasks, one module each; they need only NumPy."""

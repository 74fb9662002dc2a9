"""The built-in diagnostic tasks: one module each, drawn with NumPy alone."""

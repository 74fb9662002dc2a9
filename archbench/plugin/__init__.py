"""Plugins: found without importing them, imported and checked when they are asked for."""

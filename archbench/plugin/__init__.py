"""Plugins: found without being imported; imported and checked when one is used."""

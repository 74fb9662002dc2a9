"""``archbench probe``: which diagnostic tasks an architecture learns on a small budget."""

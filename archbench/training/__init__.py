"""Training: one recipe for every architecture. Read state, steps, then loop."""

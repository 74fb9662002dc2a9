"""Comparing architectures: equal sizes and budgets, tuned learning rates, fresh seeds, and how sure the verdict is."""

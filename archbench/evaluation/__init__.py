"""The field's evaluations: tasks of lm-evaluation-harness (the extra ``eval``) asked of any architecture."""

"""One page of what was measured: tables and figures from results and comparisons."""

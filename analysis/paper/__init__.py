"""The paper: its numbers, tables and figures, and ours beside them."""

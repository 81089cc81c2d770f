"""What one word, such as mini or small, selects: which runs and results there are, and what state they are in."""

"""Training: pure states and steps, and the programs that run them."""

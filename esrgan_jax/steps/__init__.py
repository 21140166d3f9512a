"""The training steps and what they need: state, optimiser. Pure."""

"""The arithmetic of the networks in its fast forms, chosen by platform."""

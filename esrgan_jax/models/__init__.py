"""The networks: generator and discriminators in Linen, VGG19 as functions."""

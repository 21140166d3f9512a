"""Training data: sources of images, and the pipeline that feeds the steps.

Nothing is imported here: what a program does not need, it need not load.
"""

"""Training data: image sources, the pipeline that feeds steps, augmentation.

`augment` is pure and belongs to the core. `sources`, `pipeline` and `prepare`
touch files; nothing is imported here, so that the core stays light.
"""

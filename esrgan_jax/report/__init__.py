"""What a training shows when it is done: a page, curves, sample pictures."""

"""What only makes attention fast: the same results sooner. Nothing here has to be read to understand it."""

"""What only makes the model faster: the same text sooner. Nothing here has to be read to understand it."""

"""The chat app, and the engine that serves checkpoints to many people at once."""

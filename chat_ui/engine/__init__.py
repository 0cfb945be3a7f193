"""Serving: models in memory, and the decoding steps of many requests in one batch. It knows no user interface."""

"""Batches of images to scores, and shards to parts. Knows nothing of Ray, but for the adapter to Ray Data."""

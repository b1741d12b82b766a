"""Scoring of batches of images and of shards; independent of Ray, except for the adapter to Ray Data."""

"""Bundles in Python: images of any form in, scores and explanations out, that show themselves in a notebook."""

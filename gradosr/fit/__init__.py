"""Fitting a detector to a classifier, from known images to a bundle; and checking what was understood."""

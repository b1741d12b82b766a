"""Fitting of a detector to a classifier, from known images to a bundle; and a check of a job before it runs."""

"""A run from start to finish: what is to be done, the driver on Ray, submission as a job, what is said meanwhile."""

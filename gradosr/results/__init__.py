"""The results folder: the schema of a part, the files, the lease, and the outcome of a run."""

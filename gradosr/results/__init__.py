"""The results folder: the schema of a part, its files, the lease, what became of a run."""

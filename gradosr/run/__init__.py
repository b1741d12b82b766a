"""A run from start to finish: its plan, the driver on Ray, its submission as a job, and its messages."""

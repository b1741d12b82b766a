"""An audit: what a results folder says about its archive, as facts, as a page and as lists for labelling."""

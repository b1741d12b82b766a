"""A classifier with its unknown detector and calibration, as a folder."""

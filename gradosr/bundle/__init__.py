"""A classifier with its unknown detector and calibration, stored as a folder."""

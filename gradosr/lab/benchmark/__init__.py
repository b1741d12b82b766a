"""Figures: of the gradient engine, which needs neither Ray nor boto3, and of the driver, which needs no torch."""

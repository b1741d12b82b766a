"""Benchmarks of the gradient engine and of the driver.

Those of the engine need neither Ray nor boto3; that of the driver needs no torch.
"""

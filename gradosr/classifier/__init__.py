"""The classifier: built by name, weights loaded or trained, checked."""

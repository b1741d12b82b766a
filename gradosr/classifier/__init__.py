"""The classifier: built by name, with weights loaded or trained, and checked."""

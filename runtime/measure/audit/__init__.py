"""Compares what methods write with a reference, byte for byte, and tells float ties from faults."""

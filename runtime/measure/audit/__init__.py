"""Compares what methods write with a reference, byte for byte, and distinguishes float ties from faults."""

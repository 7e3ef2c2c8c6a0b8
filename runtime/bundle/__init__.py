"""Reads and writes what is on disk: bundles, engines, archives."""

"""Trains a draft decoder for a BLT whose other weights stay fixed, so that it can denoise blocks."""

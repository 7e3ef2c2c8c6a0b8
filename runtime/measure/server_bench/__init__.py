"""Measures a running server the way its users see it: `run_server_bench`."""

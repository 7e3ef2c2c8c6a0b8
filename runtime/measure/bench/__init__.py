"""Measures methods and backends side by side."""

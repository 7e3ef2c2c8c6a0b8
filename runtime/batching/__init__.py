"""Grows many texts together: what their methods ask for in a round is answered by calls that they share."""

"""How many replicas a number of users needs, and what that costs: measured figures, a simulation, a search."""

"""The server on several processes and machines, with Ray Serve; and how many of them a number of users needs."""

"""Scores loaded models in batches: what ``fastblt eval`` measures.

In the order of the data: `windows` cuts text, `plan` determines what is scored, `teacher_forced` scores windows of true
text, `free_running` generates, `scores` runs both over one backend, `figures` sums them up, `comparison` compares two
backends. Everything goes through a `Backend`, so exported graphs and the eager model are scored by the same code.
"""

"""Worker processes: how many there are, who serves what, and who keeps them running.

The supervisor (`supervisor`) starts one process per slot (`process`), talks to it (`channel`), and never imports the
user's code. Which routes a slot serves is decided by pure functions (`plan`), which the worker itself calls.
"""

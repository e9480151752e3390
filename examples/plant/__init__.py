"""A plant in one command: devices, a broker, the app that serves them, and its database. See `scripts/demo`."""

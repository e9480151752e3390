"""Each module here gives its `router`."""

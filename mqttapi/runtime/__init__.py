"""The delivery engine, without I/O: dispatcher, lanes, ledger, failure policy."""

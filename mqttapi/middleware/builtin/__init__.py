"""Middleware that comes with MQTTAPI; import it from `mqttapi.middleware`."""

"""Connections to brokers: the only part that knows aiomqtt, paho-mqtt and mqtt5."""

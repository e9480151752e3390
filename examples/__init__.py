"""Programs that show MQTTAPI. The documentation includes them, and the tests run them."""

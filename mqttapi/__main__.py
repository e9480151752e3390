from mqttapi.cli import main

main()

from mqttapi import Router

router = Router(prefix="sensors/<sensor_id>", name="sensors.")


@router.topic("data", name="data")
async def data(sensor_id: str, payload: float) -> None:
    print(f"sensor {sensor_id}: {payload}")

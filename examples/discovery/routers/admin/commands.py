from mqttapi import Router

router = Router(prefix="admin", name="admin.")


@router.topic("restart", name="restart")
async def restart(payload: str) -> None:
    print(f"restarting {payload}")
